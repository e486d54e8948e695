"""The study of the review flag: refusals count, and few cases support no curve."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from anatomark.core.grid import Grid
from anatomark.core.image import Image
from anatomark.core.landmarks import Landmarks
from anatomark.errors import InputError

IMAGE = Image(np.zeros((1, 4, 4), np.float32), Grid.from_axes((4, 4), [[0, 1], [1, 0]], (0, 0)))
TRUTH = Landmarks(("a",), np.zeros((1, 2)))


@pytest.fixture
def tally(study: Callable[[str], ModuleType]) -> Any:
    return study("trust").Tally()


def _model(n: int) -> Any:
    prediction = SimpleNamespace(
        landmarks=Landmarks(("a",), np.full((1, 2), float(n))),
        flags=("odd",) if n % 10 == 0 else (),
        suspicion=float(n),
    )
    return SimpleNamespace(predict=lambda image: prediction)


def _refuse(image: Image) -> None:
    raise InputError("its intensities do not vary")


def test_a_refused_clean_case_is_a_false_flag(tally: Any) -> None:
    for n in range(1, 20):
        tally.clean(_model(n), str(n), IMAGE, TRUTH)
    tally.clean(SimpleNamespace(predict=_refuse), "refused", IMAGE, TRUTH)
    tally.failure(SimpleNamespace(predict=_refuse), "noise", "1", IMAGE)
    tally.failure(_model(1), "noise", "1", IMAGE)
    figures = tally.figures()
    assert tally.flagged["refused"] == [None, "refused: its intensities do not vary"]
    assert (figures["cases"], figures["false_flags"], figures["found_noise"]) == (20, 0.1, 0.5)
    assert np.isnan(figures["auroc_worst_decile_suspicion"])  # 19 cases have an error
    tally.clean(_model(30), "30", IMAGE, TRUTH)
    assert tally.figures()["auroc_worst_decile_suspicion"] == 1
