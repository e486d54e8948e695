"""Intensity rules of CT, MR and X-rays, Otsu's threshold, where the foreground lies."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anatomark.core.grid import Grid
from anatomark.core.image import Image
from anatomark.core.intensity import bounds, foreground_centre, guess_modality, intensity_rule, normalise, otsu
from anatomark.core.shape import random_rotation


def _image(values: np.ndarray) -> Image:
    array = np.asarray(values)
    d = array.ndim - 1
    return Image(array, Grid.from_axes(array.shape[1:], np.eye(d)[:, ::-1], np.zeros(d)))


def _ct(seed: int = 0) -> Image:
    array = np.random.default_rng(seed).normal(40, 20, (1, 20, 20, 20))
    array[:, :, :8] = -1000
    return _image(array.astype(np.int16))


def _mr(seed: int = 0) -> Image:
    array = np.random.default_rng(seed).uniform(100, 900, (1, 20, 20, 20))
    array[:, :10] = 0
    return _image(array.astype(np.float32))


def _xray() -> Image:
    return _image(np.random.default_rng(0).integers(0, 255, (3, 40, 40)).astype(np.uint8))


def test_only_hounsfield_units_tell_the_modality() -> None:
    assert guess_modality([_xray()]) == guess_modality([_mr()]) == "image"
    assert guess_modality([_ct()]) == "ct"
    assert guess_modality([_ct(), _ct(1), _mr()]) == "ct"
    assert guess_modality([_ct(), _mr(), _mr(1)]) == "image"
    padded = _ct().array.copy()
    padded[:, :4] = -2048  # outside the field of view
    assert guess_modality([_image(padded)]) == "ct"
    assert guess_modality([_image(_ct().array[:, :10, :, 2])]) == "ct"  # a slice
    assert guess_modality([_image(np.asarray(_ct().array, np.float32) * 20)]) == "image"  # signed, but no such unit


def test_the_rule_follows_from_the_values_and_not_from_a_label() -> None:
    for label in (None, "image", "photograph", "micro-CT", "mri"):
        assert intensity_rule(label, [_xray()]) == {"kind": "percentiles", "low": 1, "high": 99, "skip_zero": False}
        assert intensity_rule(label, [_mr()]) == {"kind": "percentiles", "low": 1, "high": 99.5, "skip_zero": True}
        assert intensity_rule(label, [_ct()])["kind"] == "window"
    tissue = _image(_ct().array[:, :, 10:])  # without air, nobody can tell, but the user
    assert (
        intensity_rule(None, [tissue])["kind"] == "percentiles" and intensity_rule("ct", [tissue])["kind"] == "window"
    )


def test_ct_has_one_window_whatever_the_image() -> None:
    rule = intensity_rule("ct", [_ct()])
    assert bounds(_ct(), rule) == bounds(_mr(), rule) == (-300.0, 1200.0)
    hu = np.array([-3000, -1000, -300, 450, 1200, 3000], dtype=np.int16).reshape(1, 6, 1, 1)
    np.testing.assert_allclose(
        normalise(_image(hu), rule).array.ravel(), [-0.5, -700 / 1500, 0, 0.5, 1, 1.5], atol=1e-6
    )


def test_an_emptied_background_says_nothing_of_an_mr_scale() -> None:
    rule = intensity_rule("mr", [_mr()])
    image = _mr()
    low, high = bounds(image, rule)
    assert low == 0
    assert high == pytest.approx(np.percentile(image.array[image.array > 0], 99.5))
    emptier = image.array.copy()
    emptier[:, :, 15:] = 0
    assert bounds(_image(emptier), rule)[1] == pytest.approx(high, rel=0.02)
    noisy = image.array + 5.0  # a background that is not 0 counts
    assert bounds(_image(noisy), rule) == pytest.approx(tuple(np.percentile(noisy, [1, 99.5])))


def test_an_image_of_nothing_but_zeros_becomes_zeros() -> None:
    out = normalise(_image(np.zeros((1, 5, 5, 5), np.float32)), intensity_rule("mr", []))
    assert not out.array.any()


def test_an_x_ray_is_scaled_by_its_own_percentiles_and_colour_is_averaged() -> None:
    image = _xray()
    rule = intensity_rule("xray", [image])
    low, high = bounds(image, rule)
    assert (low, high) == pytest.approx(tuple(np.percentile(image.array, [1, 99])))
    out = normalise(image, rule)
    assert out.array.shape == (1, 40, 40)
    assert out.array.dtype == np.float32
    want = (image.array.mean(0) - low) / (high - low)
    np.testing.assert_allclose(out.array[0], np.clip(want, -0.5, 1.5), atol=1e-5)


@settings(max_examples=25, deadline=None)
@given(gain=st.floats(0.01, 1000), offset=st.floats(-500, 500))
def test_percentiles_undo_any_linear_scale(gain: float, offset: float) -> None:
    array = np.random.default_rng(0).gamma(2, 1, (1, 30, 30)).astype(np.float64)
    rule = intensity_rule("xray", [])
    want = normalise(_image(array), rule).array
    np.testing.assert_allclose(normalise(_image(array * gain + offset), rule).array, want, atol=2e-3)


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float32])
def test_normalise_leaves_its_input_alone(dtype: type) -> None:
    array = np.random.default_rng(0).integers(0, 200, (1, 6, 6, 6)).astype(dtype)
    kept = array.copy()
    image = Image(array, _image(array).grid, {"path": "x"})
    out = normalise(image, intensity_rule("ct", []))
    np.testing.assert_array_equal(array, kept)
    assert out.meta == {"path": "x"}
    assert out.grid == image.grid


def test_otsu_lies_between_two_heaps() -> None:
    rng = np.random.default_rng(0)
    dark, bright = rng.normal(0.1, 0.03, 3000), rng.normal(0.8, 0.05, 1000)
    threshold = otsu(np.concatenate([dark, bright]))
    assert (dark < threshold).mean() > 0.995
    assert (bright > threshold).all()


@pytest.mark.parametrize("ndim", [2, 3])
def test_the_centre_of_a_shifted_blob_is_found_on_an_oblique_grid(ndim: int) -> None:
    rng = np.random.default_rng(ndim)
    steps = np.array([2.0, 1.5, 1.2])[:ndim]
    grid = Grid.centred((50, 40, 45)[:ndim], random_rotation(rng, ndim) * steps, rng.uniform(-40, 40, ndim))
    blob = grid.centre + rng.uniform(-12, 12, ndim)
    array = np.exp(-((grid.points() - blob) ** 2).sum(-1) / (2 * 6.0**2)) + rng.normal(0, 0.02, grid.shape)
    assert np.linalg.norm(blob - grid.centre) > 5
    assert np.linalg.norm(foreground_centre(Image(array[None].astype(np.float32), grid)) - blob) < 0.5


def test_the_centre_of_a_constant_image_is_its_middle() -> None:
    image = _image(np.full((1, 7, 8, 9), 0.3, np.float32))
    np.testing.assert_allclose(foreground_centre(image), image.grid.centre, atol=1e-9)
