"""What a model knows of its training images: their sizes, so that a wrong spacing is said before anything is resampled,
and which they were, so that it is said where it is measured on them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Annotated, Any

import numpy as np
from pydantic import Field, model_validator

from anatomark.cases.case import Case
from anatomark.cases.content import digests_of
from anatomark.cases.look.sizes import FACTOR, described_length, described_size, longest_mm
from anatomark.core.image import Image
from anatomark.errors import InputError
from anatomark.methods.base import Length, Stored

MOST_SPANS = 25.0  # of runs that did not note their images' sizes: an image in extents of the landmarks in it
FINEST = 1e-6  # voxels of an image, in its longest side
Digest = Annotated[str, Field(pattern="^[0-9a-f]{8,64}$")]


class ImageFacts(Stored):
    """``longest_mm``: of the longest sides of the training images the smallest and the largest. ``learned``: digests
    (``cases/content.py``) of the training images, those of the models that the weights come from included; ``chosen``:
    of the validation images by whose errors weights were chosen. Both empty in runs of earlier versions."""

    longest_mm: list[Length] = Field(min_length=2, max_length=2)
    learned: list[Digest] = []
    chosen: list[Digest] = []

    @model_validator(mode="after")
    def _ordered(self) -> ImageFacts:
        if self.longest_mm[0] > self.longest_mm[1]:
            raise ValueError("longest_mm: the smaller comes first")
        return self

    @classmethod
    def of(cls, cases: Sequence[Case]) -> ImageFacts:
        """From the headers of the training images. Raises InputError."""
        sides = [longest_mm(case.grid(case.landmarks.ndim)) for case in cases]
        return cls(longest_mm=[min(sides), max(sides)])

    def with_contents(self, train: Sequence[Case], val: Sequence[Case], source: ImageFacts | None) -> ImageFacts:
        """The same with what the images are, and those of the model that the weights come from, if they come from one.
        Raises InputError."""
        own = self.knowing(digests_of(train), digests_of(val))
        return own if source is None else own.knowing(source.learned, source.chosen)

    def knowing(self, learned: Iterable[str], chosen: Iterable[str]) -> ImageFacts:
        """The same with further digests."""
        more = {"learned": sorted({*self.learned, *learned}), "chosen": sorted({*self.chosen, *chosen})}
        return self.model_copy(update=more)


def check_size(image: Image, sizes: ImageFacts | None, facts: Any) -> None:
    """Raises InputError for an image whose longest side is more than ``FACTOR`` times that of the largest training
    image, or less than the smallest one's by that. ``sizes``: None in runs of earlier versions; there the extent of the
    mean shape in the method's ``facts``, if it has one, stands in: an image may be ``MOST_SPANS`` times as large."""
    side = longest_mm(image.grid)
    if sizes is not None:
        low, high = sizes.longest_mm
        known, low, high = f"training images were {_range(low, high)} long", low / FACTOR, high * FACTOR
    elif (span := _span(facts)) > 0:
        known, low, high = f"the landmarks of the training images span {_range(span, span)}", span / FACTOR, span
        high *= MOST_SPANS
    else:
        return
    if low <= side <= high and image.grid.spacing.min() > FINEST * side:
        return
    where = str(image.meta.get("path") or "the image")
    raise InputError(f"{where}: is {described_size(image.grid)}; {known}: is the spacing right?")


def _range(low: float, high: float) -> str:
    """Of lengths, the longest of an image's."""
    a, b = described_length(low), described_length(high)
    return a if a == b else f"{a} to {b}"


def _span(facts: Any) -> float:
    """Twice the largest distance of a landmark from the centre of the mean shape; 0 where there is none."""
    mean = np.asarray(getattr(facts, "mean_shape", ()), dtype=np.float64)
    return 2 * float(np.linalg.norm(mean - mean.mean(0), axis=1).max()) if mean.ndim == 2 else 0.0
