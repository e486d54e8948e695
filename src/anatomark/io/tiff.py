"""The directories of a TIFF file (also of the block that EXIF is): which pages it holds and how they are stored."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from anatomark.errors import InputError
from anatomark.io.files import CUT_OFF

Tags = dict[int, tuple[int, ...]]
WIDTHS = {1: ("B", 1), 3: ("H", 2), 4: ("I", 4), 16: ("Q", 8)}  # BYTE, SHORT, LONG, LONG8
COLOURS = {0: 1, 1: 1, 2: 3, 3: 1, 5: 4, 6: 3}  # values a pixel without transparency, by how they are meant (tag 262)
MOST_PAGES, MOST_VALUES = 100_000, 1 << 24


@dataclass(frozen=True)
class Page:
    """How the first page is stored."""

    size: tuple[int, int]
    bits: int
    samples: int
    tiled: bool
    white_is_0: bool
    kind: int  # 1 unsigned, 2 signed, 3 floats
    orientation: int


def check_tiff(path: Path, data: bytes) -> Page:
    """The first page of a TIFF file. Raises InputError where the file is cut off, where its pages are of several sizes,
    or where it is tiled in a way that no reader here knows; struct.error where its directories are damaged."""
    pages = list(directories(data))
    if not pages:
        raise InputError(f"{path}: {CUT_OFF}")
    sizes = [(p.get(256, (0,))[0], p.get(257, (0,))[0]) for p in pages]
    if other := next((s for s in sizes if s != sizes[0]), None):
        own, others = (f"{w} x {h}" for w, h in (sizes[0], other))
        raise InputError(
            f"{path}: holds {len(pages)} pages of several sizes ({own}, {others}); save the one you mean as a file"
        )
    first = pages[0]
    for tags in pages:
        for starts, counts in ((273, 279), (324, 325)):  # strips, tiles: where the pixels lie and how many bytes
            ends = [s + n for s, n in zip(tags.get(starts, ()), tags.get(counts, ()), strict=False)]
            if ends and max(ends) > len(data):
                raise InputError(f"{path}: {CUT_OFF}")
    bits, samples = first.get(258, (1,))[0], first.get(277, (1,))[0]
    meant = first.get(262, (1,))[0]
    page = Page(sizes[0], bits, samples, 322 in first, meant == 0, first.get(339, (1,))[0], first.get(274, (1,))[0])
    apart = samples > 1 and first.get(284, (1,))[0] == 2
    if (
        meant not in COLOURS
        or not COLOURS[meant] <= samples <= COLOURS[meant] + 1
        or (samples == 2 and (bits, meant, 338 in first) != (8, 1, True))
    ):
        raise InputError(
            f"{path}: is a TIFF of {samples} x {bits} bits, photometric interpretation {meant}, which is not read; "
            "save it as grey or RGB"
        )
    if page.tiled and bits == 8 and page.kind == 2:
        raise InputError(f"{path}: is a tiled TIFF of signed 8 bits, which is not read; save it in strips")
    if (page.tiled or apart) and bits != 8 and (samples != 1 or len(pages) > 1 or bits not in (16, 32)):
        how = "tiled" if page.tiled else "planar"
        raise InputError(
            f"{path}: is a {how} TIFF of {samples} x {bits} bits, which would be read as 8; save it in strips, chunky"
        )
    return page


def first_tags(data: bytes) -> Tags:
    """The whole-number tags of the first directory; none where the block is no TIFF."""
    return next(directories(data), {})


def directories(data: bytes) -> Iterator[Tags]:
    """The whole-number tags of each directory, of TIFF and BigTIFF. Raises struct.error where they are damaged."""
    order = {b"II": "<", b"MM": ">"}.get(data[:2])
    if order is None:
        return
    big = struct.unpack_from(f"{order}H", data, 2)[0] == 43
    offset, number = ("Q", "Q") if big else ("I", "H")
    at = struct.unpack_from(f"{order}{offset}", data, 8 if big else 4)[0]
    seen: set[int] = set()
    while at:
        if at in seen or len(seen) >= MOST_PAGES:  # ITK's reader would follow the circle for ever
            raise struct.error("the directories do not end")
        seen.add(at)
        count = struct.unpack_from(order + number, data, at)[0]
        first, length = at + struct.calcsize(order + number), 20 if big else 12
        if first + count * length > len(data):
            raise struct.error("a directory ends beyond the file")
        yield {tag: values for n in range(count) for tag, values in _entry(data, first + n * length, order, offset)}
        end = first + count * length
        at = struct.unpack_from(order + offset, data, end)[0] if end + struct.calcsize(offset) <= len(data) else 0


def _entry(data: bytes, at: int, order: str, offset: str) -> Iterator[tuple[int, tuple[int, ...]]]:
    tag, kind, count = struct.unpack_from(f"{order}HH{offset}", data, at)
    if kind not in WIDTHS:
        return
    code, width = WIDTHS[kind]
    inside = at + 4 + struct.calcsize(offset)
    where = inside
    if count * width > struct.calcsize(offset):
        where = struct.unpack_from(order + offset, data, inside)[0]
    if count > MOST_VALUES or where + count * width > len(data):
        raise struct.error("a tag's values lie beyond the file")
    yield tag, struct.unpack_from(f"{order}{count}{code}", data, where)
