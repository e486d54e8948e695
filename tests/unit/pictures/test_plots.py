"""Pictures of benchmarks: names never lie on each other, and unknown figures are no obstacle."""

from __future__ import annotations

import io

import numpy as np
import pytest
from matplotlib.image import imread

from anatomark.pictures.plots import Dot, benchmark_figure, benchmark_picture, spaced


@pytest.mark.parametrize("values", [[0.5] * 10, [0.1, 0.11, 0.12, 0.9, 0.91], [0.0, 0.5, 1.0], [0.3]])
def test_spread_names_keep_order_and_distance_and_move_little(values: list[float]) -> None:
    found = spaced(np.array(values), 0.05)
    assert (np.diff(found) >= 0.05 - 1e-9).all()
    assert found.mean() == pytest.approx(np.mean(values))
    if (np.diff(values) >= 0.05).all():
        assert found == pytest.approx(values)


def test_ten_methods_and_missing_figures() -> None:
    dots = [
        Dot(f"method {i}", 1 + 0.02 * i, (0.9, 1.3), 0.1 * 2**i, 60.0, 1.5, 0.7, [(1, 3.0), (60, 1.2)])
        for i in range(9)
    ]
    picture = imread(io.BytesIO(benchmark_picture("a set", [*dots, Dot("recorded", 1.4)])))
    assert picture.shape[1] == 17 * 130 and picture.std() > 0.01
    alone = imread(io.BytesIO(benchmark_picture("a set", [Dot("recorded", 1.4)])))
    assert alone.shape[1] == 17 * 130


@pytest.mark.parametrize("split", ["test", "val"])
def test_the_axis_names_the_split(split: str) -> None:
    figure = benchmark_figure("a set", [Dot("recorded", 1.4, seconds=0.1)], split)
    assert figure.axes[0].get_ylabel() == f"mean error, mm ({split})"
