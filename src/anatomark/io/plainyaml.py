"""YAML of settings and definitions: values only, of bounded size, whatever the file holds."""

from __future__ import annotations

from typing import Any

import yaml

from anatomark.errors import InputError
from anatomark.io.atomic import MOST_DIGITS, MOST_NESTED

MOST_YAML_BYTES = 2**20
MOST_VALUES = 100_000  # in a file, with all that its aliases stand for
PLAIN = (str, int, float, type(None))
TIMESTAMP = "tag:yaml.org,2002:timestamp"


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """The safe loader, to which a date is text."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in rules if tag != TIMESTAMP]
    for first, rules in _Loader.yaml_implicit_resolvers.items()
}


def parse_yaml(text: str, complaint: str) -> Any:
    """Plain YAML: text, numbers, true, false, null, lists and mappings of them; dates are text. Raises InputError of
    one line, ``complaint`` and why, for anything else, for a key that stands twice, for more than ``MOST_VALUES``
    values (aliases written out), and for deeper nesting than ``MOST_NESTED``."""
    try:
        _check_size(text)
        value = yaml.load(text, Loader=_Loader)
        _check_plain(value)
        return value
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" in line {mark.line + 1}" if mark else ""
        reason = getattr(error, "problem", None) or str(error)
    except RecursionError:
        line, reason = "", "is nested too deeply"
    except (ValueError, TypeError, OverflowError, LookupError, AttributeError) as error:  # a value such as 0b_
        line, reason = "", str(error)
    raise InputError(f"{complaint}{line}: {' '.join(reason.split())[:200]}")


class _Keys:
    """The keys of a mapping, of which YAML's loader would take the last of two in silence."""

    def __init__(self) -> None:
        self.seen: set[str] = set()
        self.is_key = False

    def add(self, event: yaml.NodeEvent) -> None:
        """Its next key or value. Raises ValueError for a key that was there."""
        self.is_key = not self.is_key
        if not (self.is_key and isinstance(event, yaml.ScalarEvent)):
            return
        if event.value in self.seen:
            line = "" if event.start_mark is None else f", again in line {event.start_mark.line + 1}"
            raise ValueError(f"holds the key {event.value[:60]!r} twice{line}")
        self.seen.add(event.value)


def _check_size(text: str) -> None:
    """Raises ValueError, before anything is made of the text."""
    sizes: dict[str, int] = {}  # of what an anchor names, aliases written out
    open_: list[tuple[str | None, int]] = []
    inside: list[_Keys | None] = []  # of each open collection; None: a list
    total = 0
    for event in yaml.parse(text, Loader=_Loader):
        if inside and inside[-1] is not None and isinstance(event, yaml.NodeEvent):
            inside[-1].add(event)
        if isinstance(event, yaml.CollectionStartEvent):
            inside.append(_Keys() if isinstance(event, yaml.MappingStartEvent) else None)
        elif isinstance(event, yaml.CollectionEndEvent):
            inside.pop()
        if isinstance(event, yaml.CollectionStartEvent):
            open_.append((event.anchor, total))
            total += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, before = open_.pop()
            sizes |= {anchor: total - before} if anchor else {}
        elif isinstance(event, yaml.AliasEvent):
            if any(anchor == event.anchor for anchor, _ in open_):
                raise ValueError(f"alias {event.anchor!r} holds itself")
            total += sizes.get(str(event.anchor), 0)
        elif isinstance(event, yaml.ScalarEvent):
            sizes |= {event.anchor: 1} if event.anchor else {}
            total += 1
        if total > MOST_VALUES:
            raise ValueError(f"holds more than {MOST_VALUES} values (aliases written out)")
        if len(open_) > MOST_NESTED:
            raise ValueError(f"is nested more than {MOST_NESTED} levels deep")


def _check_plain(value: Any) -> None:
    """Raises ValueError; ends, as :func:`_check_size` was asked first."""
    if isinstance(value, dict):
        for key, inner in value.items():
            _check_plain(key)
            _check_plain(inner)
    elif isinstance(value, list):
        for inner in value:
            _check_plain(inner)
    elif not isinstance(value, PLAIN):
        raise ValueError(f"holds a {type(value).__name__}; only text, numbers, lists and mappings are read")
    elif isinstance(value, int) and abs(value) >= 10**MOST_DIGITS:
        raise ValueError(f"holds a number of more than {MOST_DIGITS} digits")
    elif isinstance(value, str) and any("\ud800" <= c <= "\udfff" for c in value):
        raise ValueError("holds half of a character (a lone surrogate)")
