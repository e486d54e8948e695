"""Sub-images are as large as the errors of what comes before ask for."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from anatomark.core.grid import Array
from anatomark.core.landmarks import Landmarks
from anatomark.methods.base import Evidence
from anatomark.model.refine.levels import LevelFacts, sized

RADIUS = 20.0


def evidence(errors: Array, source: str = "validation") -> Evidence:
    """Predictions of one 2D landmark a case that are off by ``errors`` mm; in the first case it was missed."""
    truth = {f"c{i}": Landmarks(("a",), np.zeros((1, 2))) for i in range(len(errors) + 1)}
    predictions = {f"c{i + 1}": Landmarks(("a",), np.array([[0.6, 0.8]]) * e) for i, e in enumerate(errors)}
    predictions["c0"] = Landmarks(("a",), np.full((1, 2), np.nan))
    return Evidence(predictions, truth, source)


def level_of(given: Evidence, voxel_mm: float = 0.1, **settings: Any) -> LevelFacts:
    return sized(0, 32, RADIUS, voxel_mm, given, **{"coverage": 0.99, **settings})


def test_sub_images_cover_the_errors_before() -> None:
    errors = np.linspace(0.5, 3, 100)
    level = level_of(evidence(errors), coverage=0.9)
    assert level.reach_mm == pytest.approx(np.quantile(errors, 0.9))
    assert level.half_mm == pytest.approx(2 * level.reach_mm)
    assert level.half_mm == pytest.approx(level.spacing_mm * 16)
    assert (level.source, level.coverage, level.errors) == ("validation", 1.0, 100)


def test_copies_of_training_cases_flatter() -> None:
    errors = np.linspace(0.5, 4, 50)
    sources = ("validation", "augmented copies", "out-of-fold")
    new, copies, folds = (level_of(evidence(errors, source)) for source in sources)
    assert copies.reach_mm == pytest.approx(1.5 * new.reach_mm)
    assert folds.reach_mm == new.reach_mm
    assert (copies.source, folds.source) == ("augmented copies", "out-of-fold")


def test_few_errors_do_not_say_how_small_they_are() -> None:
    guessed, few = level_of(Evidence()), level_of(evidence(np.full(8, 0.01)))
    assert few.reach_mm == guessed.reach_mm == pytest.approx(0.1 * RADIUS)
    assert few.source.startswith("guessed")
    assert guessed.coverage is None
    far = level_of(evidence(np.full(8, 1e3)))
    assert far.coverage == 0.0  # nobody is deceived about it


def test_few_errors_still_say_how_large_they_are() -> None:
    assert level_of(evidence(np.full(8, 0.15 * RADIUS))).reach_mm == pytest.approx(0.15 * RADIUS)


def test_a_given_reach_counts_first_and_its_coverage_is_stated() -> None:
    errors = np.linspace(0, 10, 101)
    level = level_of(evidence(errors), reach_mm=3.0)
    assert (level.reach_mm, level.source) == (3.0, "given")
    assert level.coverage == pytest.approx((errors <= level.half_mm).mean())
    assert 0.55 < level.coverage < 0.65
    assert "made for errors up to 3 mm; they cover 60.4% of 101 errors" in level.described(32)
    assert level_of(Evidence(), reach_mm=3.0).described(32).endswith("made for errors up to 3 mm (given).")


def test_the_spacing_is_neither_finer_than_the_voxels_nor_coarser_than_the_anatomy() -> None:
    assert level_of(evidence(np.full(40, 1e-3)), voxel_mm=1.2).spacing_mm == pytest.approx(0.75 * 1.2)
    assert level_of(evidence(np.full(40, 1e-3)), voxel_mm=1e-6).spacing_mm == pytest.approx(RADIUS / 350)
    assert level_of(Evidence(), reach_mm=1e3).spacing_mm == pytest.approx(RADIUS / 20)


def test_a_case_whose_pose_was_lost_does_not_size_the_sub_images() -> None:
    level = level_of(evidence(np.r_[np.full(99, 0.5), 1e4]))
    assert level.reach_mm == pytest.approx(0.5)
    assert (level.errors, level.coverage) == (100, 0.99)  # but it is stated
    many = level_of(evidence(np.r_[np.full(60, 0.5), np.full(40, 1e4)]))
    assert many.reach_mm == pytest.approx(1e4)  # so many are no exceptions
