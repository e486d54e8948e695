"""The loop over cases: one that cannot be read or located, for whatever reason, is one failed outcome."""

import numpy as np
import pytest

from anatomark.cases.case import Case
from anatomark.core.grid import Grid
from anatomark.core.image import Image
from anatomark.core.landmarks import Landmarks
from anatomark.errors import InputError
from anatomark.model.prediction import Prediction
from anatomark.model.run_cases import run_cases
from anatomark.progress import Reporter
from anatomark.tools.outputs import each_case

ERRORS = [
    (InputError("x.nii: is cut off"), "is cut off"), (TypeError("no\nlist"), "TypeError: no (our fault"),
    (MemoryError(), "not enough memory"), (OSError(28, "full", "out.json"), "out.json: cannot be written: full"),
]  # fmt: skip
IMAGE = Image(np.arange(12).reshape(1, 3, 4), Grid.from_axes((3, 4), np.eye(2)[:, ::-1], (0, 0)))
CASES = [Case(name, held=IMAGE) for name in "abc"]


def fails_at_b(error):
    def find(case, image=None):
        if case.id == "b":
            raise error
        return Prediction(Landmarks(("p",), [[1.0, 2.0]])) if image is not None else {}

    return find


@pytest.mark.parametrize(("error", "reason"), ERRORS)
def test_the_others_go_on(error, reason, tmp_path):
    outcomes = list(run_cases(fails_at_b(error), CASES))
    assert [o.prediction is not None for o in outcomes] == [True, False, True]
    assert reason in outcomes[1].reason and "\n" not in outcomes[1].reason
    (tmp_path / "b.csv").write_text("half")
    rows = each_case("x", CASES, fails_at_b(error), lambda c: [tmp_path / f"{c}.csv"], Reporter(quiet=True))
    assert [row["state"] for row in rows] == ["written", "failed", "written"] and reason in rows[1]["reason"]
    assert not (tmp_path / "b.csv").exists()


def test_of_a_single_case_our_fault_stays_ours(tmp_path):
    with pytest.raises(TypeError):
        list(run_cases(fails_at_b(TypeError("x")), CASES[1:2]))
    with pytest.raises(TypeError):
        each_case("x", CASES[1:2], fails_at_b(TypeError("x")), lambda c: [tmp_path / c], Reporter(quiet=True))
    (outcome,) = run_cases(fails_at_b(InputError("x")), CASES[1:2])
    assert outcome.reason == "x"


def test_an_interrupt_ends_all():
    with pytest.raises(KeyboardInterrupt):
        list(run_cases(fails_at_b(KeyboardInterrupt()), CASES))
