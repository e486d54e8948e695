"""A method of another package in one file, whose stages and images happen to be called as the refiner calls its own."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from anatomark import methods
from anatomark.core.image import Image
from anatomark.methods.base import Stage
from tiny import Tiny


class Outsider(Tiny):
    STAGES = ("refine_pose", "refine1")
    READ = "refine.1"
    BLANK = "image"  # another working image, in which nothing is to be seen

    def stages(self) -> list[Stage]:
        return [replace(stage, name=name) for stage, name in zip(super().stages(), self.STAGES, strict=True)]

    def working_images(self, image: Image) -> dict[str, Image]:
        images = super().working_images(image)
        seen = images[self.READ]
        return {**images, self.BLANK: replace(seen, array=np.zeros_like(seen.array))}


class Plain(Outsider):
    """The same under names that nobody else uses."""

    STAGES = ("one", "two")
    READ = "seen"
    BLANK = "blank"


def register() -> None:
    """Make both known."""
    methods.add("outsider", "outsider:Outsider")
    methods.add("plain", "outsider:Plain")
