import time

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from anatomark.errors import InputError
from anatomark.io.plainyaml import parse_yaml
from anatomark.model.config import make_config, read_config, read_yaml

KEYS = st.text(max_size=5).filter(lambda key: not key.strip("-").isdecimal()) | st.integers(-9, 9)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=8,
)
BOMB = "a: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"b{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 9)
)
HOSTILE = {
    "alias bomb": (f"{BOMB}seed: *a8\n", "100000 values"),
    "digits": ("seed: " + "9" * 5000, "digits"),
    "more digits than a float has": ("minutes: " + "9" * 400, "digits"),
    "nested in lines": ("- " * 3000, "levels deep"),
    "nested in brackets": ("[" * 50000, "levels deep"),
    "binary number": ("seed: 0b_", "base 2"),
    "blank number": ("seed: !!int ''", "range"),
    "an alias of itself": ("a: &a [*a]", "'a' holds itself"),
    "bytes": ("a: !!binary aGVsbG8=", "holds a bytes"),
    "a set": ("!!set {a, b}", "holds a set"),
    "code": ("!!python/object/apply:os.getcwd []", "constructor"),
    "a list as a key": ("{[1, 2]: 3}", "unhashable"),
    "a key twice": ("minutes: 5\nseed: 1\nminutes: 6", "key 'minutes' twice, again in line 3"),
    "a key twice, within": ("method: {alpha: 1, 'alpha': 2}", "key 'alpha' twice"),
    "half a character": ('a: "\\ud800"', "Unicode"),
    "many documents": ("---\n" * 2, "document"),
}


@given(VALUES)
def test_plain_values_come_back(value):
    text = yaml.safe_dump(value)
    assert parse_yaml(text, "x") == value


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_yaml_is_one_line_at_once(tmp_path, kind):
    text, words = HOSTILE[kind]
    (tmp_path / "a.yaml").write_text(text)
    started = time.process_time()
    with pytest.raises(InputError, match=words) as caught:
        read_config(tmp_path / "a.yaml")
    assert time.process_time() - started < 2
    assert "a.yaml: is not plain YAML" in str(caught.value)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500
    if "\n" not in text:
        with pytest.raises(InputError, match=words):
            make_config(assignments=[f"seed={text.removeprefix('seed: ')}"])


def test_a_date_is_text(tmp_path):
    (tmp_path / "a.yaml").write_text("taken: 2001-02-03\nwhen: 2001-99-99\n")
    assert read_yaml(tmp_path / "a.yaml") == {"taken": "2001-02-03", "when": "2001-99-99"}


def test_shared_parts_are_read(tmp_path):
    (tmp_path / "a.yaml").write_text("a: &x {b: 1}\nc: {<<: *x, d: 2}\n")
    assert read_yaml(tmp_path / "a.yaml") == {"a": {"b": 1}, "c": {"b": 1, "d": 2}}


def test_size_is_bounded_before_parsing(tmp_path):
    (tmp_path / "a.yaml").write_text("a: '" + "x" * 2**20 + "'")
    with pytest.raises(InputError, match=r"a\.yaml: has 1 MB; such a file has at most 1 MB"):
        read_yaml(tmp_path / "a.yaml")
