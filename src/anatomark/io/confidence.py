"""Score and radius at the end of a description, where a format has no other place: ``AC p=0.93 r90=1.2mm``."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from anatomark.core.grid import Array
from anatomark.core.landmarks import Landmarks

_P, _R = r"p=(?:0\.\d\d|1\.00)", r"r90=\d+\.\dmm"
_END = rf"(?:^|(?<= ))(?:(?P<p>{_P})(?: (?P<r>{_R}))?|(?P<only>{_R}))"
CONFIDENCE = re.compile(rf"{_END}\Z")
ANYWHERE = re.compile(rf"(?<!\S)(?:{_P}|{_R})(?!\S)")
LOOKS_ALIKE = re.compile(rf"{_END}(?P<blanks> *)\Z")  # text of somebody's own that reads like it


def confidence(landmarks: Landmarks, i: int) -> str:
    """``p=0.93 r90=1.2mm`` of one landmark, as far as known."""
    score, radius = landmarks.score, landmarks.radius90
    parts = [f"p={score[i]:.2f}"] if score is not None and np.isfinite(score[i]) else []
    parts += [f"r90={radius[i]:.1f}mm"] if radius is not None and np.isfinite(radius[i]) else []
    return " ".join(parts)


def with_confidence(landmarks: Landmarks) -> tuple[str, ...]:
    """Each landmark's description followed by its score and radius where known. A description that itself ends so gets
    a blank behind it, by which :func:`without_confidence` knows it."""
    texts = (text + " " * bool(LOOKS_ALIKE.search(text)) for text in landmarks.descriptions)
    parts = ((text, confidence(landmarks, i)) for i, text in enumerate(texts))
    return tuple(f"{text} {end}" if text and end else text or end for text, end in parts)


def without_confidence(text: str) -> tuple[str, float, float]:
    """The inverse: description, score and radius90 in mm, NaN where the text has none."""
    score, radius = float("nan"), float("nan")
    if match := CONFIDENCE.search(text):
        score = float(match["p"][2:]) if match["p"] else score
        radius = float(end[4:-2]) if (end := match["r"] or match["only"]) else radius
        text = text[: match.start()].removesuffix(" ")
    own = LOOKS_ALIKE.search(text)
    return (text[:-1] if own and own["blanks"] else text), score, radius


def plain(text: str) -> str:
    """A description without anything that reads like score or radius, wherever it stands: as a model keeps it."""
    return " ".join(ANYWHERE.sub("", text).split()) if ANYWHERE.search(text) else text


def known(values: Sequence[float]) -> Array | None:
    """(N,) values, or None where none is known."""
    array = np.array(values, dtype=np.float64)
    return array if np.isfinite(array).any() else None
