"""Planes cut at once are the planes that a literal reading of the method cuts one by one."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anatomark.methods.pin.paper_net import cut_planes


def literal_pixel(volume: np.ndarray, *index: int) -> float:
    inside = all(0 <= i < n for i, n in zip(index, volume.shape, strict=True))
    return float(volume[index]) if inside else 0.0


def literal_planes(volume: np.ndarray, position: np.ndarray, s: int) -> np.ndarray:
    """(s, s, 3 or 1) of one landmark, pixel by pixel."""
    out = np.zeros((s, s, 3 if volume.ndim == 3 else 1))
    for r in range(s):
        for c in range(s):
            u, v = r - s // 2, c - s // 2
            if volume.ndim == 2:
                x, y = (int(p) for p in position)
                out[r, c, 0] = literal_pixel(volume, y + u, x + v)
                continue
            x, y, z = (int(p) for p in position)
            out[r, c, 0] = literal_pixel(volume, z + u, y + v, x)
            out[r, c, 1] = literal_pixel(volume, z + u, y, x + v)
            out[r, c, 2] = literal_pixel(volume, z, y + u, x + v)
    return out


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    ndim=st.sampled_from([2, 3]),
    s=st.integers(1, 9),
    dtype=st.sampled_from(["uint8", "int16", "float32"]),
    flipped=st.booleans(),
)
def test_planes_equal_the_literal_reading(seed: int, ndim: int, s: int, dtype: str, flipped: bool) -> None:
    rng = np.random.default_rng(seed)
    shape = rng.integers(1, 9, ndim)
    volume = rng.integers(1, 200, shape).astype(dtype)
    if flipped:  # a canonical image is often a view with negative strides
        volume = volume.transpose()[::-1]
    positions = rng.uniform(-8, 16, (3, 2, ndim))
    got = cut_planes(volume, positions, s)
    planes = 3 if ndim == 3 else 1
    assert got.shape == (3, s, s, 2 * planes)
    assert got.dtype == volume.dtype
    for m in range(3):
        for n in range(2):
            want = literal_planes(volume, positions[m, n], s)
            np.testing.assert_array_equal(got[m, ..., planes * n : planes * (n + 1)], want)


def test_a_reused_buffer_forgets_what_it_held() -> None:
    volume = np.full((5, 6, 7), 9, dtype=np.uint8)
    out = np.full((1, 5, 5, 3), 77, dtype=np.uint8)
    got = cut_planes(volume, np.array([[[0.0, 0.0, 0.0]]]), 5, out)
    assert got is out
    assert set(np.unique(got)) == {0, 9}


def test_centre_is_truncated_towards_zero() -> None:
    volume = np.arange(1, 6, dtype=np.float32)[None].repeat(5, 0)
    for x, want in ((-0.9, 1), (0.99, 1), (3.999, 4), (-1.0, 0)):
        assert cut_planes(volume, np.array([[[x, 2.0]]]), 1)[0, 0, 0, 0] == want


def test_channels_are_yz_xz_xy() -> None:
    z, y, x = np.meshgrid(np.arange(9), np.arange(9), np.arange(9), indexing="ij")
    at = np.array([[[6.0, 4.0, 3.0]]])  # x, y, z
    for axis, values in enumerate((x, y, z)):
        got = cut_planes(values.astype(np.int16), at, 3)[0]
        constant = [plane for plane in range(3) if np.ptp(got[..., plane]) == 0]
        assert constant == [axis]  # yz holds x still, xz holds y, xy holds z


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e30])
def test_a_plane_wholly_outside_is_zero(bad: float) -> None:
    volume = np.ones((4, 4, 4), dtype=np.uint8)
    assert not cut_planes(volume, np.array([[[bad, 1.0, 1.0]]]), 3)[..., 0].any()
    assert not cut_planes(volume, np.full((1, 1, 3), bad), 3).any()
