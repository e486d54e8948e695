"""The case: an image and its landmarks, wherever they come from. It pickles."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from anatomark.core.alignment import Alignment
from anatomark.core.grid import Grid
from anatomark.core.image import Image
from anatomark.core.landmarks import Landmarks
from anatomark.errors import InputError
from anatomark.io.images import image_geometry, read_image, squeeze_grid, squeeze_to_2d
from anatomark.io.landmarks import in_mm, landmark_format, load_landmarks, split_observer
from anatomark.io.tables import read_table


@dataclass(frozen=True)
class Reading:
    """What the user said about landmark files that do not say it themselves."""

    frame: str | None = None
    unit: str | None = None
    label_from: str = "label"


@dataclass(frozen=True, eq=False)
class Case:
    """One image with its landmarks, read when they are asked for.

    ``path``: the image, a file or a folder with a DICOM series; None where only landmarks were given. ``source``: the
    landmark file, with ``#observer`` where given; None where there is none. ``given``: landmarks in hand, which count
    before the source. ``apart``: whether the image is one of several, which no damaged file may take along
    (:func:`~anatomark.io.images.read_image`). ``split``: train, val, test or blank (unused). ``spacing``: mm along x,
    y[, z], for files that have none. ``form``: of NIfTI files with two, the sform (None too) or the qform. ``row``:
    line of the manifest. ``alignment``: where the image lies in a template's world, if that is known; ``aligned``:
    whether image and landmarks are given in that world. ``images``: what a method made of the image for its training
    (``Method.working_images``).
    """

    id: str
    path: Path | None = None
    source: str | None = None
    split: str = ""
    spacing: tuple[float, ...] | None = None
    form: str | None = None
    row: int | None = None
    reading: Reading = Reading()
    given: Landmarks | None = None
    held: Image | None = None  # an image in hand
    apart: bool = False
    alignment: Alignment | None = None
    aligned: bool = False
    images: Mapping[str, Image] = field(default_factory=dict)

    # ------------------------------------------------------------------ the image

    def image(self) -> Image:
        """The image, read anew, of the landmarks' dimension where there are landmarks.

        Raises InputError where it cannot be read, where only landmarks were given, and where the two do not fit.
        """
        image = self.held if self.held is not None else self._read()
        if self.has_landmarks:
            image = of_dimension(image, self.landmarks.ndim)
            if image.ndim != self.landmarks.ndim:
                raise InputError(
                    f"case {self.id!r}: its landmarks are {self.landmarks.ndim}D but {self.path or 'its image'} is "
                    f"{image.ndim}D; give landmarks of the image's dimension"
                )
        return self.alignment.moved(image) if self.aligned and self.alignment is not None else image

    def _read(self) -> Image:
        if self.path is None:
            raise InputError(f"case {self.id!r}: only landmarks were given, an image is needed")
        return read_image(self.path, self.spacing, self.form, apart=self.apart)

    def grid(self, ndim: int) -> Grid:
        """The grid of the image from its header alone, of dimension ``ndim``. Raises InputError."""
        grid = self.header
        if grid.ndim == 3 and ndim == 2 and grid.shape[0] == 1:
            grid = squeeze_grid(grid)
        if grid.ndim != ndim:
            raise InputError(f"{self._where}: {self.path} is {grid.ndim}D, the landmarks are {ndim}D")
        return grid

    @property
    def header(self) -> Grid:
        """The grid of the image as its header has it. Raises InputError."""
        return self._geometry[0]

    @property
    def remarks(self) -> tuple[str, ...]:
        """What the header leaves open, a line each. Raises InputError."""
        return tuple(self._geometry[1].get("notes", ()))

    @cached_property
    def _geometry(self) -> tuple[Grid, Mapping[str, Any]]:
        if self.held is not None:
            return self.held.grid, self.held.meta.get("geometry", {})
        assert self.path is not None
        return image_geometry(self.path, self.spacing, self.form, apart=self.apart)

    # ------------------------------------------------------------------ the landmarks

    @property
    def has_landmarks(self) -> bool:
        return self.given is not None or self.source is not None

    @cached_property
    def landmarks(self) -> Landmarks:
        """World mm. Raises InputError where there are none, or they do not fit the image's dimension."""
        return self.given if self.given is not None else self._fitted(self.load_landmarks())

    def observers(self, names: Sequence[str] | None = None) -> dict[str, Landmarks]:
        """All observers of this case in its table, in the order of ``names`` where given; one entry ``""`` for other
        files. Raises InputError."""
        file, _ = split_observer(self._source())
        if landmark_format(file) not in (".csv", ".tsv"):
            by_observer = {"": self.landmarks}
        else:
            r = self.reading
            table = read_table(file, r.frame, r.unit, r.label_from).observers(self.id)
            by_observer = {o: self._fitted(m) for o, m in table.items()}
        return by_observer if names is None else {o: m.select(names) for o, m in by_observer.items()}

    @property
    def observer(self) -> str | None:
        """The observer of a table that the source names."""
        file, name = split_observer(self.source or "")
        return name if file.suffix.lower() in (".csv", ".tsv") else None

    def load_landmarks(self) -> Landmarks:
        """As they stand in the file: perhaps in pixels, perhaps 3D with z = 0. Raises InputError."""
        r = self.reading
        return load_landmarks(self._source(), case=self.id, frame=r.frame, unit=r.unit, label_from=r.label_from)

    def _fitted(self, landmarks: Landmarks) -> Landmarks:
        if landmarks.ndim == 2:
            return self.in_mm(landmarks, self._source())
        return in_plane(landmarks) if self._lies_in_a_plane() else landmarks

    def in_mm(self, landmarks: Landmarks, where: str) -> Landmarks:
        """2D landmarks of ``load_landmarks`` in mm: px lie on the image's grid, without an image they have its spacing,
        from 0. Raises InputError, naming ``where``, if neither is known."""
        on_image = landmarks.meta.get("unit") == "px" and (self.held is not None or self.path is not None)
        return in_mm(landmarks, self.grid(2) if on_image else self.spacing, where)

    def _lies_in_a_plane(self) -> bool:
        """Whether the image is a 2D file, as far as its header can be read, and cheaply; else that is said later."""
        if self.path is None or os.path.isdir(self.path):
            return False
        try:
            return self.header.ndim == 2
        except InputError:
            return False

    def _source(self) -> str:
        if self.source is None:
            raise InputError(f"{self._where} has no landmarks")
        return self.source

    @property
    def _where(self) -> str:
        return f"case {self.id!r}" + (f" (row {self.row})" if self.row is not None else "")

    # ------------------------------------------------------------------ changed copies

    def with_landmarks(self, landmarks: Landmarks) -> Case:
        return replace(self, given=landmarks)

    def in_template(self, alignment: Alignment | None = None) -> Case:
        """The case in the template's world, by ``alignment`` or by its own; as it is where it has none."""
        alignment = alignment or self.alignment
        if alignment is None or self.aligned:
            return self
        moved = alignment.to_template(self.landmarks)
        return replace(self, given=moved, alignment=alignment, aligned=True)


def of_dimension(image: Image, ndim: int) -> Image:
    """The one place where a single slice (a 3D image whose slowest axis has length 1) becomes 2D, because landmarks or
    model are; any other image as it is."""
    return squeeze_to_2d(image) if image.ndim == 3 and ndim == 2 and image.grid.shape[0] == 1 else image


def in_plane(landmarks: Landmarks) -> Landmarks:
    """Landmarks of a 2D image from a 3D file, as Slicer's are: without z where that is 0 throughout, else as given."""
    if landmarks.ndim == 2 or np.nan_to_num(landmarks.points[:, 2]).any():
        return landmarks
    return replace(landmarks, points=landmarks.points[:, :2], covariance=None)
