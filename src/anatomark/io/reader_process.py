"""Images read in a process of its own, which a damaged file may end or hold up, and which is then replaced."""

from __future__ import annotations

import atexit
import json
import os
import signal
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anatomark.core.grid import Grid
from anatomark.core.image import Image
from anatomark.errors import InputError
from anatomark.io.child import start_child
from anatomark.io.frames import Spacing

READY = b"ready\n"
WALL_S, BYTES_S = 60.0, 1e6  # a file may take so long, and longer by so many bytes a second
CODE = "import sys; sys.path[:] = {!r}; from anatomark.io.reader_server import serve; serve()"
_lock = threading.Lock()


class CannotStart(Exception):
    """No process could be started; the file is to be read in this one."""


class ReaderProcess:
    """A process that reads one image after the other: a line of JSON goes in, one comes out, pixels behind it."""

    def __init__(self) -> None:
        self.owner = os.getpid()  # a fork of this process needs one of its own
        try:
            self.process = start_child(CODE.format(sys.path))
        except (OSError, ValueError) as error:
            raise CannotStart(str(error)) from None
        self.started = self.timed_out = False

    def ask(self, request: dict[str, Any], seconds: float) -> tuple[dict[str, Any], NDArray[Any] | None]:
        """The answer, and the array that it announces. Raises EOFError where the process ended, or was ended after
        ``seconds``; CannotStart where it never began."""
        source, sink = self.process.stdout, self.process.stdin
        assert source is not None and sink is not None
        timer = threading.Timer(seconds, self._too_long)
        timer.daemon = True
        timer.start()
        try:
            if not self.started:
                if source.readline() != READY:
                    raise CannotStart("the process that reads images did not start")
                self.started = True
            sink.write(json.dumps(request).encode() + b"\n")
            sink.flush()
            line = source.readline()
            if not line.endswith(b"\n"):
                raise EOFError
            answer = json.loads(line)
            if "array" not in answer:
                return answer, None
            array = np.empty(answer["array"]["shape"], np.dtype(answer["array"]["dtype"]))
            rest = array.reshape(-1).view(np.uint8).data
            while len(rest):
                if not (count := source.readinto(rest)):  # type: ignore[attr-defined]
                    raise EOFError
                rest = rest[count:]
            return answer, array
        except BrokenPipeError:
            raise EOFError from None
        finally:
            timer.cancel()

    def _too_long(self) -> None:
        self.timed_out = True
        self.process.kill()

    def how_it_ended(self) -> str:
        code = self.process.wait()
        if self.timed_out or code == -getattr(signal, "SIGXCPU", 0):
            return "takes too long to read"
        name = signal.Signals(-code).name if code < 0 else f"exit {code}"
        return f"ends the library that reads it ({name})"

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                with suppress(OSError):  # what was not sent
                    pipe.close()


_reader: ReaderProcess | None = None
_cannot = False  # none could be started


def read_in_process(path: Path, spacing: Spacing, form: str | None) -> Image:
    """As ``read_image``. Raises InputError also where the file ends the process, or takes too long or too much memory;
    CannotStart where there can be none."""
    answer, array = _ask("image", path, spacing, form)
    assert array is not None
    return Image(array, _grid(answer), answer["meta"])


def geometry_in_process(path: Path, spacing: Spacing, form: str | None) -> tuple[Grid, dict[str, Any]]:
    """As ``image_geometry``, with errors as :func:`read_in_process`."""
    answer, _ = _ask("geometry", path, spacing, form)
    return _grid(answer), answer["facts"]


def _grid(answer: dict[str, Any]) -> Grid:
    return Grid(tuple(answer["shape"]), np.array(answer["affine"]))


def _ask(what: str, path: Path, spacing: Spacing, form: str | None) -> tuple[dict[str, Any], NDArray[Any] | None]:
    global _reader, _cannot
    if _cannot:
        raise CannotStart
    given = np.atleast_1d(spacing).tolist() if spacing is not None else None
    request = {"what": what, "path": str(path), "spacing": given, "form": form}
    with _lock:
        try:
            if _reader is None or _reader.owner != os.getpid() or _reader.process.poll() is not None:
                _reader = ReaderProcess()
            reader = _reader
            answer, array = reader.ask(request, WALL_S + bytes_of(path) / BYTES_S)
        except EOFError:
            raise InputError(f"{path}: {reader.how_it_ended()}; it is damaged, or no image") from None
        except BaseException as error:  # an interrupt, say: what comes next would be the answer to this
            _cannot = isinstance(error, CannotStart)
            end_reader()
            raise
    if "error" in answer:
        raise InputError(answer["error"])
    if "fault" in answer:
        raise RuntimeError(answer["fault"])
    return answer, array


def bytes_of(path: Path) -> int:
    """Size of a file, or of the files lying directly in a folder; 0 where it cannot be told."""
    try:
        files = [f for f in path.iterdir() if f.is_file()] if path.is_dir() else [path]
        return sum(f.stat().st_size for f in files)
    except (OSError, ValueError):
        return 0


@atexit.register
def end_reader() -> None:
    """End the process, if there is one; the next image starts another."""
    global _reader
    if _reader is not None and _reader.owner == os.getpid():
        _reader.end()
    _reader = None
