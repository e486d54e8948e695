import errno
import os

import pytest

from anatomark.errors import InputError
from anatomark.io.atomic import atomic_path, read_json, read_text, write_json, write_text


def test_writes_whole_and_makes_folders(tmp_path):
    target = tmp_path / "new" / "folder" / "a.nii.gz"
    with atomic_path(target) as temporary:
        assert temporary.parent == target.parent
        assert temporary.name.endswith(".nii.gz")
        temporary.write_text("x")
        assert not target.exists()
    assert target.read_text() == "x"
    assert os.listdir(target.parent) == ["a.nii.gz"]


@pytest.mark.parametrize("failing", ["replace", "fsync"])
def test_failure_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, failing):
    target = tmp_path / "a.json"
    write_json(target, {"old": 1})

    def full(*_args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, failing, full)
    with pytest.raises(InputError, match=r"a\.json: cannot be written: No space left on device") as caught:
        write_json(target, {"new": 2})
    assert "\n" not in str(caught.value)
    assert os.listdir(tmp_path) == ["a.json"]
    assert read_json(target) == {"old": 1}


def test_disk_full_in_the_middle_of_a_save(tmp_path):
    target = tmp_path / "weights.bin"
    with pytest.raises(InputError, match="No space left"), atomic_path(target) as temporary:
        temporary.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")
    assert os.listdir(tmp_path) == []


def test_other_exceptions_pass_and_clean_up(tmp_path):
    with pytest.raises(KeyboardInterrupt), atomic_path(tmp_path / "a") as temporary:
        temporary.write_bytes(b"half")
        raise KeyboardInterrupt
    assert os.listdir(tmp_path) == []


def test_parent_is_a_file(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="cannot be written"):
        write_text(tmp_path / "file" / "below.txt", "x")


def test_nan_is_no_json(tmp_path):
    with pytest.raises(ValueError, match="Out of range"):
        write_json(tmp_path / "a.json", {"x": float("nan")})
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("data", "words"), [(b"\xff\xfe\x00", "UTF-8"), (b'{"a":\n oops}', "line 2"), (None, "no such file")]
)
def test_unreadable(tmp_path, data, words):
    path = tmp_path / "a.json"
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(InputError, match=words):
        read_json(path)


def test_byte_order_mark_is_dropped(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfcase")
    assert read_text(tmp_path / "a.txt") == "case"
