"""A point of a definition, of scan planes or measurements: a landmark, or a mean of some."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import numpy as np
from pydantic import PlainValidator

from anatomark.io.names import clean_name


def parse_point(value: Any) -> dict[str, float]:
    """A label, a list of labels (their mean) or a weighted mean ``{label: weight}``, as weights that add up to 1.

    Raises ValueError.
    """
    if _is_label(value):
        return {_label(value): 1.0}
    if isinstance(value, list | tuple) and value and all(_is_label(v) for v in value):
        if len({_label(v) for v in value}) < len(value):
            raise ValueError("a label appears twice in one mean; give label: weight")
        return {_label(v): 1.0 / len(value) for v in value}
    if isinstance(value, Mapping) and value:
        weights = {_label(k): v for k, v in value.items()}
        if not all(_is_weight(w) for w in weights.values()):
            raise ValueError(f"a mean of landmarks has weights above 0, found {str(value)[:60]}")
        return {k: w / sum(weights.values()) for k, w in weights.items()}
    raise ValueError(
        "a point is a landmark's label, a list of labels (their mean) or label: weight pairs, "
        f"found {str(value)[:60]!r}"
    )


def parse_meanings(value: Any) -> dict[str, str]:
    """What labels stand for, ``{label: meaning}``. Raises ValueError where one is blank, or neither text nor number."""
    pairs = [(k, v) for k, v in value.items()] if isinstance(value, Mapping) else [(None, value)]
    for pair in pairs:
        if not all(_is_label(one) and _label(one) for one in pair):
            raise ValueError(f"expected label: meaning, found {': '.join(map(str, pair[pair[0] is None :]))[:60]!r}")
    return {_label(k): _label(v) for k, v in pairs}


def _label(value: Any) -> str:
    return clean_name(str(value))


def _is_label(value: Any) -> bool:
    return isinstance(value, str | int) and not isinstance(value, bool)


def _is_weight(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and bool(np.isfinite(value)) and value > 0


Point = Annotated[dict[str, float], PlainValidator(parse_point)]
Meanings = Annotated[dict[str, str], PlainValidator(parse_meanings)]
