import errno
import os

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

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
    ("data", "words"),
    [
        (b"\xff\xfe\x00", "UTF-8"),
        (b"\xe4", "UTF-8"),
        (b'{"a":\n oops}', "line 2"),
        (None, "no such file"),
        (b'{"a": ' + b"9" * 5000 + b"}", "a number of 5000 digits"),
        (b'{"a": 1' + b"0" * 400 + b"}", "a number of 401 digits"),
        (b"[" * 1000 + b"]" * 1000, "nested"),
        (b"[" * 100_000, "nested"),
        (b"[" * 102 + b"]" * 102, "more than 100 levels"),
        (b'{"unknown": {"field": NaN}}', "holds NaN"),
        (b"[-Infinity]", "holds -Infinity"),
        (b"[1e999]", "too large, 1e999"),
        (b'["\\ud800"]', "half of a character"),
        (b'[{"\\ud83d": 1}]', "half of a character"),
    ],
)
def test_unreadable(tmp_path, data, words):
    path = tmp_path / "a.json"
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(InputError, match=words) as caught:
        read_json(path)
    assert "a.json" in str(caught.value) and "\n" not in str(caught.value)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec="utf-8")),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
)  # fmt: skip


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(VALUES)
def test_json_comes_back(tmp_path, value):
    write_json(tmp_path / "a.json", value)
    assert read_json(tmp_path / "a.json") == value


def test_a_whole_character_of_two_halves_is_read(tmp_path):
    (tmp_path / "a.json").write_text('["\\ud83d\\ude00"]')
    assert read_json(tmp_path / "a.json") == ["\U0001f600"]


def test_only_regular_files_are_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path, words in (
        (tmp_path / "pipe", "no regular file"), ("/dev/zero", "no regular file"), (tmp_path, "is a folder"),
        (f"{tmp_path}/a\0b", "cannot be read"), (tmp_path / ("x" * 999), "cannot be read"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=words):
            read_text(path)


def test_size_is_bounded(tmp_path):
    (tmp_path / "a.txt").write_text("x" * 2_000_000)
    with pytest.raises(InputError, match=r"a\.txt: has 2 MB; such a file has at most 1 MB"):
        read_text(tmp_path / "a.txt", 1_000_000)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_text_as_windows_saves_it(tmp_path, encoding):
    (tmp_path / "a.txt").write_bytes("n\u00e4\r\nb\r".encode(encoding))
    assert read_text(tmp_path / "a.txt") == "n\u00e4\nb\n"
    assert read_text(tmp_path / "a.txt", newlines=False) == "n\u00e4\r\nb\r"


def test_byte_order_mark_is_dropped(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfcase")
    assert read_text(tmp_path / "a.txt") == "case"
