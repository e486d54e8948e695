"""Images on disk, memory-mapped, so that training reads windows of many volumes in little memory."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, overload

import numpy as np

from anatomark.cases.case import Case
from anatomark.core.alignment import Alignment
from anatomark.core.grid import Grid
from anatomark.core.image import Image
from anatomark.errors import InputError

Images = Mapping[str, Image]
GRIDS = "grids.json"


def fingerprint_of(path: str | os.PathLike[str] | None, *more: Any) -> str:
    """A short hash of a file's (or a DICOM folder's) path, size and time of change, and of ``more`` (plain JSON)."""
    assert path is not None
    path = Path(path)
    files = sorted(p for p in path.iterdir() if p.is_file()) if path.is_dir() else [path]
    facts = [(str(p.resolve()), p.stat().st_size, p.stat().st_mtime_ns) for p in files]
    return hashlib.sha256(json.dumps([facts, more], sort_keys=True, default=str).encode()).hexdigest()[:20]


def image_key(case: Case, *more: Any) -> str:
    """:func:`fingerprint_of` a case's image, and of the spacing and the form that it is read with."""
    told = [None if case.spacing is None else list(case.spacing), *([case.form] if case.form else [])]
    return fingerprint_of(case.path, *told, *more)


def save_images(folder: Path, images: Images, alignment: Alignment | None = None) -> None:
    """Write named images as ``.npy`` and ``grids.json``, with where they lie in a template's world, into ``folder``; it
    appears whole or not at all, and an existing one is left as it is.

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
        affine = None if alignment is None else alignment.affine.tolist()
        text = json.dumps({"images": entries, "alignment": affine})
        (temporary / GRIDS).write_text(text, encoding="utf-8")
        os.replace(temporary, folder)
    except OSError as error:
        if (folder / GRIDS).exists():  # another process was quicker
            return
        raise InputError(f"{folder.parent}: the cache cannot be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def open_images(folder: Path) -> tuple[dict[str, Image], Alignment | None]:
    """What :func:`save_images` wrote; the images memory-mapped (changes stay in memory)."""
    stored = json.loads((folder / GRIDS).read_text(encoding="utf-8"))
    arrays: dict[str, Any] = {}
    images = {}
    for name, e in stored["images"].items():
        if e["file"] not in arrays:
            arrays[e["file"]] = np.load(folder / e["file"], mmap_mode="c")
        images[name] = Image(arrays[e["file"]], Grid(tuple(e["shape"]), np.array(e["affine"])), e["meta"])
    affine = stored["alignment"]
    return images, None if affine is None else Alignment(np.array(affine))


@dataclass
class CaseStore(Sequence[Case]):
    """Cases whose images lie in ``folder/<key>``, opened when a case is asked for. Mappings stay open up to
    ``cache_mb`` (least recently used are closed first), so that memory stays bounded whatever the number of cases.
    Pickles without its mappings."""

    folder: Path
    cache_mb: float = 2048
    cases: list[Case] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)
    _open: OrderedDict[str, tuple[dict[str, Image], Alignment | None]] = field(default_factory=OrderedDict, repr=False)

    def __len__(self) -> int:
        return len(self.cases)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": OrderedDict()}

    def add(self, case: Case, key: str, make: Callable[[], tuple[Images, Alignment | None]]) -> None:
        """Append a case; ``make`` is called only where its images are not in the folder yet."""
        if not (self.folder / key / GRIDS).exists():
            save_images(self.folder / key, *make())
        self.cases.append(case)
        self.keys.append(key)

    @overload
    def __getitem__(self, i: int) -> Case: ...
    @overload
    def __getitem__(self, i: slice) -> Sequence[Case]: ...
    def __getitem__(self, i: int | slice) -> Case | Sequence[Case]:
        """A case with its ``images``, memory-mapped, and its ``alignment``."""
        if isinstance(i, slice):
            return [self[k] for k in range(*i.indices(len(self)))]
        if not -len(self) <= i < len(self):
            raise IndexError(i)
        images, alignment = self._opened(self.keys[i])
        return replace(self.cases[i], images=images, alignment=alignment)

    def _opened(self, key: str) -> tuple[dict[str, Image], Alignment | None]:
        if key in self._open:
            self._open.move_to_end(key)
            return self._open[key]
        opened = self._open[key] = open_images(self.folder / key)
        while len(self._open) > 1 and sum(_megabytes(images) for images, _ in self._open.values()) > self.cache_mb:
            self._open.popitem(last=False)
        return opened


def _megabytes(images: Images) -> float:
    return sum({id(i.array): i.array.nbytes for i in images.values()}.values()) / 2**20
