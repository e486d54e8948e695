"""What error messages are made of."""

from __future__ import annotations

from anatomark.errors import listed


def test_a_long_list_of_names_is_shortened() -> None:
    names = ["a", "b", "c"]
    assert listed(names) == "a, b, c"
    assert listed(names, 2) == "a, b and 1 more"
    assert listed(names, 2, quote=True) == "'a', 'b' and 1 more"
