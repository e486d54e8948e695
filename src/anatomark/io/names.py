"""What a landmark is called: blanks around a name and its Unicode form are no part of it."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from typing import Any

from anatomark.errors import InputError, listed

NUMBERED = re.compile(
    r"(?:[A-Za-z]{0,2}|\w*(?:[Ff]iducial|[Pp]oint|[Mm]arkups?))[-_ ]?\d+"
)  # what programs call points


def clean_name(text: str) -> str:
    """A label without blanks (and invisible characters) at its ends, its letters composed (NFC)."""
    if text.isascii():
        return text.strip()
    composed = unicodedata.normalize("NFC", text)
    inner = [i for i, c in enumerate(composed) if not (c.isspace() or unicodedata.category(c) == "Cf")]
    return composed[inner[0] : inner[-1] + 1] if inner else ""


def folded(name: str) -> str:
    """What names have in common that differ in blanks, hyphens, underscores, capitals or Unicode form alone."""
    plain = unicodedata.normalize("NFKC", name).casefold()
    kept = "".join(c for c in plain if unicodedata.category(c)[0] not in "ZC" and c not in "-_‐‑–—")
    return unicodedata.normalize("NFC", kept) or plain


def named(
    labels: Sequence[str], descriptions: Sequence[str], label_from: str, path: Any, rows: Sequence[str]
) -> tuple[list[str], list[str], list[str]]:
    """Names, descriptions and remarks: names are the labels, or with ``label_from`` ``description`` the descriptions
    (the labels, which may then be blank, become the descriptions). ``rows`` say where each stands. Raises InputError
    for a blank or doubled name, and another ``label_from``."""
    if label_from not in ("label", "description"):
        raise InputError(f"labels come from 'label' or 'description', not {label_from!r}")
    by_label = label_from == "label"
    labels, descriptions = [clean_name(x) for x in labels], list(descriptions)
    names, others = (labels, descriptions) if by_label else ([clean_name(x) for x in descriptions], labels)
    first: dict[str, str] = {}
    for name, label, row in zip(names, labels, rows, strict=True):
        if not name and not by_label:
            of = f"landmark {label!r}" if label else "the landmark"
            raise InputError(f"{path}: {row}: {of} has no description to take the name from")
        if not name:
            remedy = "; the descriptions may be names: give `label_from` description" if any(descriptions) else ""
            raise InputError(f"{path}: {row}: the label is blank{remedy}")
        if name in first:
            raise InputError(f"{path}: {row}: {label_from} {name!r} appears more than once ({first[name]})")
        first[name] = row
    return names, others, remarks(labels, descriptions, path) if by_label else []


def remarks(labels: Sequence[str], descriptions: Sequence[str], path: Any) -> list[str]:
    """A line where labels are numbers, and descriptions what a person would call a name."""
    if not any(descriptions):
        return []
    texts = [clean_name(d) for d in descriptions]
    if not all(texts) or len(set(texts)) < len(texts):
        return []
    if any(map(_numbered, texts)) or not all(map(_numbered, labels)):
        return []
    return [
        f"{path}: the landmarks are called {listed(labels, 2)}, and described as {listed(texts, 2)}; where the "
        "descriptions are the names, give `label_from` description"
    ]


def _numbered(text: str) -> bool:
    return len(text) <= 40 and NUMBERED.fullmatch(text) is not None
