"""To start from another model: its weights, moved to this model's landmarks."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Mapping, Sequence

import torch

from anatomark.methods.base import PerLandmark

State = dict[str, torch.Tensor]


def moved_weights(
    state: Mapping[str, torch.Tensor],
    rules: Mapping[str, int | PerLandmark | None],
    names: Sequence[str],
    old_names: Sequence[str],
    own: Mapping[str, torch.Tensor],
) -> State:
    """The tensors of another model of the landmarks ``old_names``, as a model of ``names`` with the first weights
    ``own`` takes them; ``rules`` as in ``Method.per_landmark``.

    Each landmark gets what stands at its name, a new one what its rule says. Tensors without a rule, and those that
    the old landmarks do not divide, stay as they are, whether or not they fit this model.
    """
    rows = [old_names.index(n) if n in old_names else -1 for n in names]
    patterns = [(_pattern(text), rule) for text, rule in rules.items()]
    out: State = {}
    for key, value in state.items():
        match, rule = next(((m, r) for p, r in patterns if (m := p.fullmatch(key))), (None, None))
        if match is None:
            out[key] = value
        elif "landmark" in match.groupdict():
            old = int(match["landmark"])
            if old in rows:
                out[f"{key[: match.start('landmark')]}{rows.index(old)}{key[match.end('landmark') :]}"] = value
        elif rule is not None:
            rule = rule if isinstance(rule, PerLandmark) else PerLandmark(rule)
            moved = _moved(value, rule, rows, len(old_names), own.get(key))
            if moved is not None:
                out[key] = moved
    return out


def _pattern(text: str) -> re.Pattern[str]:
    """A pattern of file names, with ``{landmark}`` for a number."""
    return re.compile(fnmatch.translate(text).replace(re.escape("{landmark}"), r"(?P<landmark>\d+)"))


def _moved(
    value: torch.Tensor, rule: PerLandmark, rows: Sequence[int], count: int, own: torch.Tensor | None
) -> torch.Tensor | None:
    """A tensor of ``count`` landmarks with those of ``rows`` (-1: new); None where a new one keeps its own part and
    there is none of that size."""
    if value.ndim <= rule.axis or value.shape[rule.axis] % count:
        return value
    old = _by_landmark(value, rule, count)
    if rule.new == "own":
        if own is None or own.ndim != value.ndim or own.shape[rule.axis] % len(rows):
            return None
        fresh = _by_landmark(own, rule, len(rows))
        if fresh.shape[1:] != old.shape[1:]:
            return None
        old = old.to(own.dtype)
    else:
        one = old.mean(0) if -1 in rows else old[0]
        fresh = (one if rule.new == "mean" else torch.zeros_like(one)).expand(len(rows), *one.shape)
    picked = torch.stack([old[r] if r >= 0 else fresh[i] for i, r in enumerate(rows)])
    inner = rule.order == "inner"
    return (picked.transpose(0, 1) if inner else picked).flatten(0, 1).movedim(0, rule.axis)


def _by_landmark(value: torch.Tensor, rule: PerLandmark, count: int) -> torch.Tensor:
    """(N, k, ...): the landmarks first, then what each has along the axis, then the other axes."""
    value = value.movedim(rule.axis, 0)
    return value.unflatten(0, (-1, count)).transpose(0, 1) if rule.order == "inner" else value.unflatten(0, (count, -1))
