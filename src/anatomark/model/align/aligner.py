"""Linear alignment to a template before a method: mutual information, several resolutions, many starts.

The template is the mean of training images, each brought into the frame of the landmarks' mean shape by its own
landmarks. An image is thinned once; a fixed even set of rotations, shifts and sizes is measured coarsely, the best are
improved by gradient ascent, and fewer and fewer of them at finer and finer resolutions (``mutual_information.py``).
Nothing is resampled in the end: :meth:`Alignment.moved` gives the same voxels another grid.
"""

from __future__ import annotations

import base64
import math
import time
import zlib
from dataclasses import replace
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field, model_validator

from anatomark.core.alignment import Alignment
from anatomark.core.grid import Array, Grid
from anatomark.core.image import Image
from anatomark.core.intensity import check_rule, normalise
from anatomark.core.resample import block_mean, low_pass
from anatomark.core.shape import Pose, mean_shape, rotation_angle
from anatomark.errors import InputError
from anatomark.methods.base import Angle, Coordinate, Length, MethodConfig, Rounds, Stored, Study
from anatomark.methods.kit.anatomy import block_for, start_centre
from anatomark.methods.kit.posed import read_block
from anatomark.model.align.mutual_information import Level, Template, distinct, improve, rotation_cover

HALF_WIDTH = 1.5  # radii of the mean shape that the template reaches to each side
LEAST_PART = 0.35  # of an image's smallest extent that it reaches at least, where landmarks lie close together
UPRIGHT_FROM = 10  # cases that show how far images are turned; of fewer the search allows for more
NEAR_DEG, FEWER = 45.0, 3  # within so few degrees a third of the starts is enough
RESOLUTIONS = ((1 / 21, 1500), (1 / 32, 4000), (1 / 64, 12000))  # voxels in widths of the template, and its points


class AlignConfig(MethodConfig):
    """Settings of the alignment. Its radius is the mean shape's, at least 0.23 of the images' smallest extent."""

    enabled: bool | None = None  # None: as the method's author chose
    kind: Literal["rigid", "similarity", "affine"] = "similarity"  # what the image may be moved by
    # from upright; None: training poses, with a margin, at least 75 (30 from ten cases on)
    rotations_deg: float | None = Field(default=None, gt=0, le=180)
    template_px: int = Field(default=64, ge=16, le=128)  # voxels along the template's sides
    template_cases: Rounds = Field(default=12, ge=1)  # training images averaged at most
    step_deg: float = Field(default=18.0, ge=5, le=60)  # each rotation of the search stands for a ball of this radius
    shift: float = Field(default=0.25, ge=0)  # radii: how far the shifts tried lie from the foreground's centre
    starts: Rounds = Field(default=24, ge=1)  # of the candidates measured, improved coarsely
    finalists: Rounds = Field(default=6, ge=1)  # of these, improved at the middle resolution
    bins: int = Field(default=16, ge=4, le=64)  # intensity classes


class AlignFacts(Stored):
    """The template, what lies where in it, and how far images may be turned from it.

    ``template`` (8 bits) and ``valid`` (1 bit a voxel; outside nothing was averaged): packed voxels of an image of
    ``shape`` and index-to-world ``affine``; ``mean_shape`` (N, D) mm in its world, null where no case tells;
    ``anchor_mm`` (D,): where the search's start centre of an image lies in it; ``intensity``: the rule of images.
    """

    template: str
    valid: str
    shape: list[Annotated[int, Field(ge=2, le=256)]] = Field(min_length=2, max_length=3)
    affine: list[list[Coordinate]]
    mean_shape: list[list[Coordinate | None]]
    radius_mm: Length
    rotations_deg: Annotated[Angle, Field(gt=0)]
    anchor_mm: list[Coordinate]
    intensity: dict[str, Any]

    @model_validator(mode="after")
    def _whole(self) -> AlignFacts:
        d, count = len(self.shape), math.prod(self.shape)
        check_rule(self.intensity)
        if len(self.anchor_mm) != d or any(len(point) != d for point in self.mean_shape):
            raise ValueError(f"anchor_mm and mean_shape: not all have {d} coordinates")
        Grid(tuple(self.shape), np.asarray(self.affine))  # raises ValueError for what is no affine
        sizes = {"template": count, "valid": -(-count // 8)}
        if any(len(_unpacked(getattr(self, name), size)) != size for name, size in sizes.items()):
            raise ValueError(f"template and valid: not of {' x '.join(map(str, self.shape))} voxels")
        return self


class Aligner:
    """Finds the :class:`Alignment` of images to the template in ``facts``. Keeps no state between images."""

    def __init__(self, config: AlignConfig, facts: AlignFacts):
        self.config = config
        self.radius = facts.radius_mm
        self.rotations_deg = config.rotations_deg or facts.rotations_deg
        fewer = FEWER if self.rotations_deg <= NEAR_DEG else 1
        self.starts, self.finalists = -(-config.starts // fewer), -(-config.finalists // fewer)
        self.anchor = np.asarray(facts.anchor_mm)
        self.mean_shape = np.asarray(facts.mean_shape, dtype=np.float64)
        self.intensity = facts.intensity
        shape = tuple(facts.shape)
        count = math.prod(shape)
        values = _unpacked(facts.template, count).reshape(shape)
        bits = _unpacked(facts.valid, -(-count // 8))
        self.template = Image(values[None].astype(np.float32) / 255, Grid(shape, np.asarray(facts.affine)))
        self.valid = np.unpackbits(bits, count=values.size).reshape(shape).astype(bool)
        self._levels = [self._level(width, points) for width, points in RESOLUTIONS]

    @classmethod
    def prepare(cls, config: AlignConfig, study: Study) -> AlignFacts:
        """Template and range of poses from the training cases.

        Cases with fewer than D landmarks fix no pose; where all are so, the first alone is the template, upright as its
        header says. Raises InputError where the landmarks lie outside the images.
        """
        chosen, mean, poses = _posed_cases(study)
        radius = float(np.nanmax(np.linalg.norm(mean, axis=1), initial=0.0))
        spread = max(rotation_angle(p.rotation) for p in poses)
        some = np.unique(np.linspace(0, len(chosen) - 1, min(config.template_cases, len(chosen))).astype(int))
        images = [study.cases[chosen[i]].image() for i in some]
        extent = float(np.median([i.grid.extent_mm.min() for i in images]))
        half = max(HALF_WIDTH * radius, LEAST_PART * extent)
        d, px = mean.shape[1], config.template_px
        grid = Grid.centred((px,) * d, np.eye(d)[:, ::-1] * (2 * half / px), np.zeros(d))
        total, covered, anchors = np.zeros(grid.shape), np.zeros(grid.shape), []
        for image, pose in zip(images, [poses[i] for i in some], strict=True):
            thin = normalise(block_mean(image, block_for(image, grid.spacing[0])), study.intensity)
            at = pose.translation[None], (pose.rotation * pose.scale)[None], px, float(grid.spacing[0])
            total += read_block(thin, *at)[0, 0].numpy()
            covered += read_block(replace(thin, array=np.ones_like(thin.array)), *at)[0, 0].numpy()
            anchors.append(pose.invert(start_centre(thin)))
        average = np.clip(total / np.maximum(covered, 1e-6), 0, 1)
        away = np.linalg.norm(grid.points(), axis=-1)
        valid = (covered >= 0.5 * len(images)) & (away <= half)  # a ball: the same whichever way the image is turned
        if not valid.any():
            raise InputError("the training landmarks lie outside their images: check the frame of the landmark files")
        return AlignFacts(
            template=_packed(np.round(255 * average).astype(np.uint8)),
            valid=_packed(np.packbits(valid)),
            shape=list(grid.shape),
            affine=grid.affine.tolist(),
            mean_shape=[[float(x) if np.isfinite(x) else None for x in point] for point in mean],
            radius_mm=half / HALF_WIDTH,
            rotations_deg=config.rotations_deg or _reach(spread, len(chosen)),
            anchor_mm=np.mean(anchors, 0).tolist(),
            intensity=dict(study.intensity),
        )

    def _level(self, width: float, points: int) -> tuple[float, Template]:
        """Spacing (mm) and points of the template thinned to voxels of a given share of its width."""
        factor = max(1, int(width * self.template.grid.shape[0] + 0.5))
        image = block_mean(self.template, (factor,) * self.template.ndim)
        share = block_mean(Image(self.valid[None].astype(np.float32), self.template.grid), (factor,) * image.ndim)
        return float(image.grid.spacing[0]), Template.of(image, share.array[0] > 0.5, points, self.config.bins)

    def align(self, image: Image) -> Alignment:
        """The image's place in the template's world. The same image gives the same answer. Raises InputError for an
        image of another dimension."""
        begin = time.perf_counter()
        if image.ndim != self.template.ndim:
            raise InputError(f"a {image.ndim}D image cannot be aligned to a {self.template.ndim}D template")
        with torch.inference_mode(False), torch.enable_grad():  # whoever calls may have switched gradients off
            affine, measure = self._search(self.levels(image))
        out = np.eye(image.ndim + 1)
        out[:-1] = affine.numpy()
        return Alignment(out, measure, time.perf_counter() - begin)

    def _search(self, levels: list[Level]) -> tuple[torch.Tensor, float]:
        """The best transform (D, D+1) from the template into an image, and its measure."""
        coarse, middle, fine = levels
        affines = self.candidates(start_centre(coarse.image))
        if np.ptp(coarse.image.array) < 1e-6:  # one value everywhere says nothing: the first candidate is upright
            return affines[0], 1.0
        with torch.no_grad():
            measures = coarse.measure(affines)
        c, kind = self.config, "rigid" if self.config.kind == "rigid" else "similarity"
        # level, candidates, what may change, first step and least distance of candidates (radians, radii), rounds
        plan = [
            (coarse, 4 * self.starts, kind, 0.1, 0.3, 8),
            (coarse, self.starts, kind, 0.05, 0.2, 20),
            (middle, self.finalists, kind, 0.03, 0.1, 20),
            (fine, 1, kind, 0.01, 0.05, 20),
        ]
        if c.kind == "affine":
            plan.append((fine, 1, "affine", 0.02, 0.05, 30))
        for level, most, what, step, apart, rounds in plan:
            chosen = distinct(affines, measures, most, self.radius, apart)
            affines, measures = improve(level, affines[chosen], what, self.radius, step, rounds)
        best = int(measures.argmax())
        return affines[best], float(measures[best])

    def levels(self, image: Image) -> list[Level]:
        """The image at three resolutions, coarse first, each with the template's points."""
        fine = block_mean(image, block_for(image, self._levels[-1][0]))
        fine = normalise(Image(np.nan_to_num(fine.array), fine.grid), self.intensity)
        return [
            Level(low_pass(fine, spacing / fine.grid.spacing), template, self.config.bins)
            for spacing, template in self._levels
        ]

    def candidates(self, centre: Array) -> torch.Tensor:
        """(B, D, D+1) transforms to begin with, for an image whose search starts at ``centre`` (D,) mm."""
        d = len(centre)
        turns = rotation_cover(d, self.rotations_deg, self.config.step_deg)
        shifts = np.concatenate([np.zeros((1, d)), np.eye(d), -np.eye(d)]) * self.config.shift * self.radius
        places = centre + shifts[None] - (turns @ self.anchor)[:, None]
        out = np.zeros((len(turns), len(shifts), d, d + 1))
        out[..., :d], out[..., d] = turns[:, None], places
        return torch.from_numpy(out.reshape(-1, d, d + 1))


def _reach(spread_deg: float, cases: int) -> float:
    """How far from upright images are sought, where those of training are turned by up to ``spread_deg``."""
    if spread_deg > 60:
        return 180.0
    return max(30.0, 3 * spread_deg) if cases >= UPRIGHT_FROM and spread_deg <= 25 else max(75.0, 1.5 * spread_deg)


def _posed_cases(study: Study) -> tuple[list[int], Array, list[Pose]]:
    """The cases whose landmarks fix a pose, their mean shape (N, D) and poses; else the first case, upright."""
    shapes = [c.landmarks.select(study.names).points for c in study.cases]
    d = study.cases[0].landmarks.ndim
    defined = np.array([np.isfinite(s).all(1).sum() for s in shapes])
    chosen = [i for i in range(len(shapes)) if defined[i] >= d]
    if chosen:
        mean, poses = mean_shape(np.stack([shapes[i] for i in chosen]))
        return chosen, mean, poses
    first = int(np.argmax(defined > 0))
    centre = np.nanmean(shapes[first], 0) if defined[first] else study.cases[first].image().grid.centre
    return [first], shapes[first] - centre, [Pose(np.eye(d), centre)]


def _unpacked(text: str, count: int) -> np.ndarray:
    """The inverse of :func:`_packed`, of up to ``count`` bytes and one more. Raises ValueError."""
    try:
        data = zlib.decompressobj().decompress(base64.b64decode(text, validate=True), count + 1)
    except zlib.error:
        raise ValueError("packed voxels are damaged") from None
    return np.frombuffer(data, np.uint8)


def _packed(values: np.ndarray) -> str:
    return base64.b64encode(zlib.compress(values.tobytes(), 9)).decode("ascii")
