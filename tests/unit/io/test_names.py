import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anatomark.errors import InputError
from anatomark.io.names import clean_name, folded, named

LETTERS = st.text(st.characters(codec="utf-8", categories=["L", "N"]), min_size=1, max_size=8)


@given(LETTERS, st.sampled_from(["", " ", "\t", "\u00a0", "\u200b", " \ufeff"]), st.sampled_from(["NFC", "NFD"]))
def test_blanks_and_unicode_form_are_no_part_of_a_name(name, blank, form):
    plain = unicodedata.normalize("NFC", name)
    assert clean_name(blank + unicodedata.normalize(form, name) + blank) == plain
    assert clean_name(plain) == plain


@pytest.mark.parametrize(
    "other", ["Nasion tip", "NASION_TIP", "nasion-tip", "nasiontip", "nasion\u200b tip", "ｎasion tip"]
)
def test_what_differs_only_so_is_alike(other):
    assert folded(other) == folded("nasion tip")


@pytest.mark.parametrize(("a", "b"), [("L1", "L2"), ("gonion_L", "gonion_R"), ("A", "B"), ("-", "_")])
def test_what_names_two_landmarks_is_not(a, b):
    assert folded(a) != folded(b)


@pytest.mark.parametrize(
    ("labels", "descriptions", "label_from", "words"),
    [
        (["a", " "], ["", ""], "label", "row 2: the label is blank"),
        (["", ""], ["AC", "PC"], "label", "blank; the descriptions may be names: give `label_from` description"),
        (["a", "a "], ["", ""], "label", r"row 2: label 'a' appears more than once \(row 1\)"),
        (["\u00e9", "e\u0301"], ["", ""], "label", "more than once"),
        (["a", "b"], ["AC", "AC"], "description", "description 'AC' appears more than once"),
        (["a", "b"], ["AC", ""], "description", "landmark 'b' has no description"),
        (["", ""], ["AC", ""], "description", "the landmark has no description"),
        (["a", "b"], ["", ""], "id", "labels come from 'label' or 'description', not 'id'"),
    ],
)
def test_bad_names(labels, descriptions, label_from, words):
    with pytest.raises(InputError, match=words) as caught:
        named(labels, descriptions, label_from, "a.fcsv", ["row 1", "row 2"])
    assert str(caught.value).startswith("a.fcsv: ") or label_from == "id"


@pytest.mark.parametrize(
    ("labels", "descriptions", "said"),
    [
        (["1", "2"], ["AC", "PC"], True),
        (["F-1", "F-2"], ["AC", "PC"], True),
        (["MarkupsFiducial_1", "MarkupsFiducial_2"], ["AC", "PC"], True),
        (["1", "2"], ["AC", "AC"], False),
        (["1", "2"], ["AC", ""], False),
        (["1", "2"], ["3", "4"], False),
        (["AC", "PC"], ["anterior commissure", "posterior commissure"], False),
    ],
)
def test_numbered_labels_with_names_beside_them_are_remarked(labels, descriptions, said):
    names, others, notes = named(labels, descriptions, "label", "a.fcsv", ["row 1", "row 2"])
    assert (names, others, bool(notes)) == (labels, descriptions, said)
    assert all("give `label_from` description" in n for n in notes)
    assert named(labels, descriptions, "label", "a", ["", ""])[0] == labels
