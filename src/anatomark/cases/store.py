"""Images on disk, memory-mapped, so that training reads windows of many volumes in little memory."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from anatomark.core.grid import Grid
from anatomark.core.image import Image
from anatomark.core.landmarks import Landmarks
from anatomark.core.resample import as_tensor, sample_index
from anatomark.core.shape import random_rotation
from anatomark.core.warp import random_warp
from anatomark.errors import InputError

Images = Mapping[str, Image]
GRIDS = "grids.json"


def fingerprint_of(path: str | os.PathLike[str], *more: Any) -> str:
    """A short hash of a file's (or a DICOM folder's) path, size and time of change, and of ``more`` (plain JSON)."""
    path = Path(path)
    files = sorted(p for p in path.iterdir() if p.is_file()) if path.is_dir() else [path]
    facts = [(str(p.resolve()), p.stat().st_size, p.stat().st_mtime_ns) for p in files]
    return hashlib.sha256(json.dumps([facts, more], sort_keys=True, default=str).encode()).hexdigest()[:20]


def save_images(folder: Path, images: Images) -> None:
    """Write named images as ``.npy`` and ``grids.json`` into ``folder``; it appears whole or not at all, and an
    existing one is left as it is.

    Images that share one array are stored once. Raises InputError where the disk refuses.
    """
    if (folder / GRIDS).exists():
        return
    temporary = folder.with_name(f".tmp-{uuid.uuid4().hex[:8]}")
    try:
        temporary.mkdir(parents=True)
        stored: dict[int, str] = {}
        entries = {}
        for name, image in images.items():
            if id(image.array) not in stored:
                stored[id(image.array)] = f"{len(stored)}.npy"
                # written, not mapped: on a full disk writing fails cleanly
                np.save(temporary / stored[id(image.array)], np.ascontiguousarray(image.array))
            entries[name] = {
                "file": stored[id(image.array)],
                "shape": image.grid.shape,
                "affine": image.grid.affine.tolist(),
                "meta": json.loads(json.dumps(image.meta, default=str)),
            }
        (temporary / GRIDS).write_text(json.dumps(entries), encoding="utf-8")
        os.replace(temporary, folder)
    except OSError as error:
        raise InputError(f"{folder.parent}: the cache cannot be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def open_images(folder: Path) -> dict[str, Image]:
    """The images that :func:`save_images` wrote, memory-mapped (changes stay in memory)."""
    entries = json.loads((folder / GRIDS).read_text(encoding="utf-8"))
    arrays: dict[str, Any] = {}
    for e in entries.values():
        if e["file"] not in arrays:
            arrays[e["file"]] = np.load(folder / e["file"], mmap_mode="c")
    return {
        name: Image(arrays[e["file"]], Grid(tuple(e["shape"]), np.array(e["affine"])), e["meta"])
        for name, e in entries.items()
    }


@dataclass
class CaseStore:
    """Cases whose images lie in ``folder/<key>``. Mappings stay open up to ``cache_mb`` (least recently used are closed
    first), so that memory stays bounded whatever the number of cases. Pickles without its mappings."""

    folder: Path
    cache_mb: float = 2048
    ids: list[str] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)
    landmarks: list[Landmarks] = field(default_factory=list)
    _open: OrderedDict[str, dict[str, Image]] = field(default_factory=OrderedDict, repr=False)

    def __len__(self) -> int:
        return len(self.ids)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": OrderedDict()}

    def add(self, id: str, key: str, landmarks: Landmarks, make: Callable[[], Images]) -> None:
        """Append a case; ``make`` is called only where its images are not in the folder yet."""
        if not (self.folder / key / GRIDS).exists():
            save_images(self.folder / key, make())
        self.ids.append(id)
        self.keys.append(key)
        self.landmarks.append(landmarks)

    def images(self, i: int) -> dict[str, Image]:
        """The images of case i, memory-mapped."""
        key = self.keys[i]
        if key in self._open:
            self._open.move_to_end(key)
            return self._open[key]
        images = self._open[key] = open_images(self.folder / key)
        while len(self._open) > 1 and sum(map(_megabytes, self._open.values())) > self.cache_mb:
            self._open.popitem(last=False)
        return images


def _megabytes(images: Images) -> float:
    return sum({id(i.array): i.array.nbytes for i in images.values()}.values()) / 2**20


def augmented_copy(image: Image, landmarks: Landmarks, rng: np.random.Generator) -> tuple[Image, Landmarks]:
    """A copy that was smoothly warped (by up to 6 % of the landmarks' extent), turned by up to 10 degrees, shifted by
    up to 3 % and scaled by up to 5 %: something to validate on where no case can be spared.

    Turning, shifting and scaling change the grid only. Returns a float32 image and the moved landmarks.
    """
    d = image.ndim
    known = landmarks.points[landmarks.defined]
    extent = float(np.ptp(known, axis=0).max()) if len(known) > 1 else 0.0
    extent = extent or float(image.grid.extent_mm.max()) / 2
    warp = random_warp(rng, image.grid, 0.06 * extent, 0.7 * extent)
    out = np.empty(image.array.shape, np.float32)
    source, fill, shape = as_tensor(image), float(image.subsample().min()), image.grid.shape
    # the warp is smooth: it is evaluated at every fourth voxel, linear in between
    nodes = [np.linspace(0, n - 1, -(-n // 4) + 1) for n in shape]
    moved = image.grid.to_index(warp(image.grid.to_world(np.stack(np.meshgrid(*nodes, indexing="ij"), -1))))
    coarse = torch.from_numpy(np.moveaxis(moved, -1, 0).astype(np.float32))[None]
    mode = "bilinear" if d == 2 else "trilinear"
    index = torch.nn.functional.interpolate(coarse, size=shape, mode=mode, align_corners=True)[0].movedim(0, -1)
    thick = max(1, 2_000_000 // int(np.prod(shape[1:])))
    for k in range(0, shape[0], thick):  # in slabs, for memory's sake
        out[:, k : k + thick] = sample_index(source, index[k : k + thick].contiguous(), fill).numpy()
    turn = random_rotation(rng, d, 10.0) * rng.uniform(0.95, 1.05)
    centre, shift = image.grid.centre, rng.uniform(-0.03, 0.03, d) * extent
    affine = image.grid.affine.copy()
    affine[:d, :d] = turn @ image.grid.axes
    affine[:d, d] = turn @ (image.grid.origin - centre) + centre + shift
    points = (warp.inverse(landmarks.points) - centre) @ turn.T + centre + shift
    return Image(out, Grid(image.grid.shape, affine), image.meta), landmarks.with_points(points)
