"""The process that reads images for another: within limits of time and memory, which end it where a file would."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from anatomark.core.grid import Grid
from anatomark.errors import InputError
from anatomark.io.images import image_of, open_image
from anatomark.io.reader_process import READY, bytes_of

CPU_S, BYTES_S = 10.0, 1e6  # as WALL_S, of this process's own time
MEMORY, TIMES = 1 << 30, 4  # bytes beside so many times the file, then so many times the voxels that it announces
VOXEL = 12  # bytes of the widest voxels but a few


def serve() -> None:
    """Answer requests on standard input until it ends. What libraries print goes nowhere."""
    requests, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    nowhere = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(nowhere, descriptor)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the process that asks decides
    answers.write(READY)
    answers.flush()
    for line in requests:
        request = json.loads(line)
        try:
            answer, array = answered(request)
        except InputError as error:
            answer, array = {"error": str(error)}, None
        except MemoryError:
            answer, array = {"error": f"{request['path']}: takes too much memory to read; it is damaged"}, None
        except Exception as error:
            answer, array = {"fault": f"{type(error).__name__}: {error}"}, None
        answers.write(json.dumps(answer).encode() + b"\n")
        if array is not None:
            answers.write(array.reshape(-1).view(np.uint8).data)
        answers.flush()


def answered(request: dict[str, Any]) -> tuple[dict[str, Any], np.ndarray[Any, Any] | None]:
    """What is asked of an image, as plain JSON, and its array. Raises whatever reading does."""
    path = Path(request["path"])
    size = bytes_of(path)
    limit(CPU_S + size / BYTES_S, MEMORY + TIMES * size)
    opened = open_image(path, request["form"])
    if request["what"] == "geometry":
        return {**_plain(opened.geometry.grid(path, request["spacing"])), "facts": opened.geometry.facts()}, None
    voxels = int(np.prod(opened.geometry.size, dtype=np.float64))
    limit(CPU_S + size / BYTES_S, MEMORY + TIMES * max(size, VOXEL * voxels))
    image = image_of(path, opened, request["spacing"])
    array = {"shape": image.array.shape, "dtype": image.array.dtype.str}
    return {**_plain(image.grid), "meta": image.meta, "array": array}, image.array


def _plain(grid: Grid) -> dict[str, Any]:
    return {"shape": grid.shape, "affine": grid.affine.tolist()}


def limit(seconds: float, memory: float) -> None:
    """So many seconds of processor time and bytes of memory from here on, where the system knows such limits."""
    if sys.platform == "win32":
        return
    import resource

    mapped = 0
    statm = Path("/proc/self/statm")
    if statm.exists():
        mapped = int(statm.read_text().split()[0]) * resource.getpagesize()
    limits = {resource.RLIMIT_CPU: time.process_time() + seconds + 1, resource.RLIMIT_CORE: 0}
    if mapped:
        limits[resource.RLIMIT_AS] = mapped + memory
    for which, value in limits.items():
        _, most = resource.getrlimit(which)
        wanted = int(value) if most == resource.RLIM_INFINITY else min(int(value), most)
        with suppress(ValueError, OSError):  # not here
            resource.setrlimit(which, (wanted, most))
