"""Images read in a process of its own: they are the same; a file that ends it, or holds it up, costs one image."""

import json
import os
import signal
import subprocess
import sys
import threading

import numpy as np
import pytest
import SimpleITK as sitk

from anatomark.errors import InputError
from anatomark.io import reader_process
from anatomark.io.images import image_geometry, read_image

TROUBLES = """
import json, os, sys, time
sys.path[:] = {!r}
import anatomark.io.reader_server as server
real = server.open_image
def open_image(path, form=None):
    if "abort" in path.name:
        os.abort()
    if "slow" in path.name:
        time.sleep(60)
    while "busy" in path.name:
        pass
    if "greedy" in path.name:
        bytearray(1 << 33)
    if "fault" in path.name:
        raise TypeError("of ours")
    return real(path, form)
server.open_image, server.CPU_S = open_image, 0.0
server.serve()
"""


def picture(path, channels=1, dtype=np.uint8):
    array = np.random.default_rng(0).integers(0, 200, (11, 13, channels)[: 2 + (channels > 1)]).astype(dtype)
    sitk.WriteImage(sitk.GetImageFromArray(array, isVector=channels > 1), str(path))
    return path


@pytest.fixture
def troubles(monkeypatch):
    """A process in which names such as ``abort.png`` do harm."""
    reader_process.end_reader()
    monkeypatch.setattr(reader_process, "CODE", TROUBLES)
    yield
    reader_process.end_reader()


@pytest.mark.parametrize(
    ("name", "channels", "dtype"), [("a.png", 1, np.uint8), ("a.png", 3, np.uint16), ("a.tif", 1, np.uint16)]
)
def test_the_same_image(tmp_path, name, channels, dtype):
    path = picture(tmp_path / name, channels, dtype)
    here, there = read_image(path, 0.5), read_image(path, 0.5, apart=True)
    assert there.array.dtype == here.array.dtype and there.array.flags.writeable
    np.testing.assert_array_equal(there.array, here.array)
    assert (there.grid, there.meta) == (here.grid, here.meta)
    assert image_geometry(path, (0.5, 0.25), apart=True) == image_geometry(path, (0.5, 0.25))


def test_the_same_refusal(tmp_path):
    path = picture(tmp_path / "a.png")
    with pytest.raises(InputError) as here:
        read_image(path)
    with pytest.raises(InputError) as there:
        read_image(path, apart=True)
    assert str(there.value) == str(here.value)


def test_one_process_reads_all(tmp_path, monkeypatch):
    path = picture(tmp_path / "a.png")
    read_image(path, 1, apart=True)
    monkeypatch.setattr(reader_process, "CODE", "raise SystemExit(1)")
    assert read_image(path, 1, apart=True).array.max() > 0
    assert not reader_process._cannot


def test_it_starts_without_torch():
    code = (
        f"import sys; sys.path[:] = {sys.path!r}; import anatomark.io.reader_server; sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("abort.png", "ends the library that reads it (SIGABRT)"),
        ("slow.png", "takes too long"),
        ("busy.png", "takes too long"),
        ("greedy.png", "takes too much memory"),
    ],
)
@pytest.mark.skipif(sys.platform == "win32", reason="signals, and limits of a process")
def test_a_file_costs_one_image(tmp_path, monkeypatch, troubles, name, reason):
    if name == "greedy.png" and sys.platform != "linux":
        pytest.skip("memory of a process is limited on Linux alone")
    good, bad = picture(tmp_path / "good.png"), picture(tmp_path / name)
    read_image(good, 1, apart=True)
    if name == "slow.png":
        monkeypatch.setattr(reader_process, "WALL_S", 0.3)
    with pytest.raises(InputError) as error:
        read_image(bad, 1, apart=True)
    assert str(error.value).startswith(f"{bad}: {reason}") and "\n" not in str(error.value)
    monkeypatch.setattr(reader_process, "WALL_S", 60)
    assert read_image(good, 1, apart=True).array.max() > 0


def test_our_fault_is_called_so(tmp_path, troubles):
    with pytest.raises(RuntimeError, match="TypeError: of ours"):
        read_image(picture(tmp_path / "fault.png"), 1, apart=True)
    assert read_image(picture(tmp_path / "good.png"), 1, apart=True).array.max() > 0


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_an_interrupt_ends_at_once(tmp_path, troubles):
    slow, good = picture(tmp_path / "slow.png"), picture(tmp_path / "good.png", 3)
    read_image(good, 1, apart=True)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background work ignores it
    try:
        threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
        with pytest.raises(KeyboardInterrupt):
            read_image(slow, 1, apart=True)
    finally:
        signal.signal(signal.SIGINT, before)
    assert len(read_image(good, 1, apart=True).array) == 3


def test_without_a_process_it_is_read_here(tmp_path, monkeypatch):
    reader_process.end_reader()
    monkeypatch.setattr(reader_process, "CODE", "raise SystemExit(1)")
    monkeypatch.setattr(reader_process, "_cannot", False)
    assert read_image(picture(tmp_path / "a.png"), 1, apart=True).array.max() > 0
    assert reader_process._cannot


def test_our_own_readers_need_none(tmp_path, monkeypatch):
    monkeypatch.setattr(reader_process, "_ask", lambda *_: pytest.fail("was read in another process"))
    array = np.random.default_rng(0).integers(0, 99, (4, 5, 6)).astype(np.int16)
    for name in ("a.nii.gz", "a.nrrd", "a.mha"):
        sitk.WriteImage(sitk.GetImageFromArray(array), str(tmp_path / name))
        assert read_image(tmp_path / name, apart=True).array.shape == (1, 4, 5, 6)
    read_image(picture(tmp_path / "a.png"), 1)


@pytest.mark.parametrize("apart", [True, False])
def test_readers_that_end_a_process_are_never_in_ours(tmp_path, monkeypatch, apart):
    asked = []
    monkeypatch.setattr(reader_process, "_ask", lambda what, *_: asked.append(what) or (json.loads("{}"), None))
    for name in ("a.vtk", "a.h5", "a.gipl"):
        (tmp_path / name).write_bytes(b"x" * 600)
        with pytest.raises(KeyError):  # of the empty answer
            image_geometry(tmp_path / name, apart=apart)
    assert asked == ["geometry"] * 3
