"""Pictures: points land where their image content is, in every orientation; files are whole."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import imread

from anatomark.core.grid import Grid
from anatomark.core.image import Image
from anatomark.core.landmarks import Landmarks, Status
from anatomark.errors import InputError
from anatomark.pictures import overlay as pictures
from anatomark.pictures.overlay import AXIAL, CORONAL, FLAT, SAGITTAL, case_picture, overlay
from anatomark.pictures.style import MOST_SIGNS, PREDICTION, TRUTH, cut

# columns: world step of array axes 0, 1, 2; the second is stored right to left, back to front, x slowest
ORIENTATIONS = [
    np.array([[0, 0, 1.0], [0, 2.0, 0], [3.0, 0, 0]]),
    np.array([[-1.0, 0, 0], [0, -2.0, 0], [0, 0, 3.0]]),
]


def dot(axes: np.ndarray, index: tuple[int, ...], shape: tuple[int, ...]) -> tuple[Image, Landmarks]:
    grid = Grid.from_axes(shape, axes, np.full(len(shape), 7.0))
    array = np.zeros((1, *shape), np.float32)
    array[(0, *index)] = 1
    return Image(array, grid), Landmarks(("dot",), grid.to_world(index)[None])


@pytest.mark.parametrize("axes", ORIENTATIONS)
@pytest.mark.parametrize("plane", [AXIAL, CORONAL, SAGITTAL])
@pytest.mark.parametrize("half", [None, 6.0])
def test_the_mark_lies_on_the_bright_voxel(axes: np.ndarray, plane: pictures._Section, half: float | None) -> None:
    image, marks = dot(axes, (5, 8, 4), (12, 14, 10))
    view = pictures._View(image)
    ax = Figure().subplots()
    view.draw(ax, plane, marks["dot"], half)
    shown = ax.images[0]
    pixels = np.asarray(shown.get_array())
    left, right, bottom, top = shown.get_extent()
    row, column = np.unravel_index(pixels.argmax(), pixels.shape)
    x = left + (column + 0.5) / pixels.shape[1] * (right - left)
    y = top + (row + 0.5) / pixels.shape[0] * (bottom - top)
    assert pixels.max() == 1
    assert view.locate(plane, marks["dot"]) == pytest.approx([x, y])
    assert ax.get_aspect() == 1


def test_letters_are_where_the_patient_is() -> None:
    image, marks = dot(ORIENTATIONS[1], (5, 8, 4), (12, 14, 10))
    view = pictures._View(image)
    here = marks["dot"]
    for plane, towards in (
        (AXIAL, {"L": (1, 0, 0), "P": (0, 1, 0)}),
        (CORONAL, {"L": (1, 0, 0), "S": (0, 0, 1)}),
        (SAGITTAL, {"P": (0, 1, 0), "S": (0, 0, 1)}),
    ):
        ax = Figure().subplots()
        view.draw(ax, plane, here)
        for letter, step in towards.items():
            dx, dy = ax.transData.transform(view.locate(plane, here + step)) - ax.transData.transform(
                view.locate(plane, here)
            )
            side = ("left" if dx < 0 else "right") if abs(dx) > abs(dy) else ("top" if dy > 0 else "bottom")
            assert plane.edges[("left", "right", "top", "bottom").index(side)] == letter


@pytest.mark.parametrize("channels", [1, 3])
def test_2d_pictures(tmp_path: Path, channels: int) -> None:
    image, truth = dot(np.array([[0, 0.5], [0.5, 0]]), (20, 30), (80, 60))
    image = Image(np.repeat(image.array, channels, 0), image.grid)
    found = Landmarks(("dot",), truth.points + 1, radius90=np.array([2.0]))
    for guess in (found, None):
        assert imread(io.BytesIO(case_picture(image, guess, truth, ["dot"]))).ndim == 3
    overlay(image, found, None, tmp_path / "a.png")
    height, width = imread(tmp_path / "a.png").shape[:2]
    assert width / height == pytest.approx(60 / 80, rel=0.02)
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]
    assert pictures._View(image).locate(FLAT, truth["dot"]).tolist() == [15, 10]


def test_3d_pictures_with_a_constant_image_and_nothing_found(tmp_path: Path) -> None:
    image, truth = dot(ORIENTATIONS[0], (5, 8, 4), (12, 14, 10))
    image = Image(np.zeros_like(image.array), image.grid)
    nothing = Landmarks(("dot",), np.full((1, 3), np.nan))
    assert case_picture(image, nothing, truth, ["dot"]).startswith(b"\x89PNG")
    overlay(image, nothing, truth, tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 0


@pytest.mark.parametrize(("shape", "draw"), [((80, 60), "_whole_2d"), ((12, 14, 10), "_sheet_3d")])
def test_absent_landmarks_are_named(shape: tuple[int, ...], draw: str) -> None:
    d = len(shape)
    image = Image(np.zeros((1, *shape), np.float32), Grid.from_axes(shape, np.eye(d)[:, ::-1], np.zeros(d)))
    points = np.vstack([np.full(d, 5.0), np.full((2, d), np.nan)])
    found = Landmarks(("there", "gone", "open"), points, (Status.DEFINED, Status.ABSENT, Status.UNANNOTATED))
    texts = [t.get_text() for t in getattr(pictures, draw)(pictures._View(image), found, None).texts]
    assert [t for t in texts if "absent" in t] == ["absent: gone"]
    whole = getattr(pictures, draw)(pictures._View(image), found.select(["there"]), None)
    assert not any("absent" in t.get_text() for t in whole.texts)


def _texts(ax: Axes) -> list[str]:
    return [t.get_text() for t in ax.texts]


@pytest.mark.parametrize("draw", ["_sheet_3d", "_rows_3d"])
def test_every_row_of_slices_has_its_letters_a_scale_bar_and_the_picture_the_cases_name(draw: str) -> None:
    image, _ = dot(ORIENTATIONS[0], (5, 8, 4), (30, 34, 30))
    points = image.grid.to_world(np.linspace(4, 24, 15)[:, None] * np.ones(3))
    found = Landmarks(tuple(f"p{i}" for i in range(15)), points)
    given = (found, None) if draw == "_sheet_3d" else (found, found, found.names)
    figure = getattr(pictures, draw)(pictures._View(image), *given, case="anna")
    assert "anna" in [t.get_text() for t in figure.texts]
    rows: list[list[str]] = [[] for _ in found.names]
    for i, ax in enumerate(figure.axes):
        assert {t for t in _texts(ax) if len(t) == 1} in (set("RLAP"), set("RLSI"), set("APSI"))
        rows[i // (3 if draw == "_sheet_3d" else 4)] += _texts(ax)
    assert all(any(t.endswith(" mm") for t in texts) for texts in rows)


def test_flat_pictures_have_the_cases_name_and_a_scale_bar() -> None:
    image, truth = dot(np.array([[0, 0.5], [0.5, 0]]), (20, 30), (80, 60))
    view = pictures._View(image)
    for figure in (
        pictures._whole_2d(view, truth, None, case="anna"),
        pictures._zooms_2d(view, truth, truth, ["dot"], case="anna"),
    ):
        texts = _texts(figure.axes[0])
        assert "anna" in texts
        bar = next(line for line in figure.axes[0].lines if line.get_transform() == figure.axes[0].transAxes)
        share = float(np.ptp(bar.get_xdata()))
        assert f"{share * 30:g} mm" in texts  # the image is 60 columns of 0.5 mm wide


@pytest.mark.parametrize("shape", [(80, 60), (12, 14, 10)])
def test_checkerboards_have_name_and_scale_bar(shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Figure] = []
    monkeypatch.setattr(pictures, "png", lambda figure, **_: seen.append(figure) or b"")
    d = len(shape)
    image = Image(np.ones((1, *shape), np.float32), Grid.from_axes(shape, np.eye(d)[:, ::-1], np.zeros(d)))
    pictures.checkerboard(image, image, case="anna")
    assert "anna" in _texts(seen[0].axes[0])
    assert all(any(t.endswith(" mm") for t in _texts(ax)) for ax in seen[0].axes)


def test_names_with_a_dollar_are_drawn_as_they_are(tmp_path: Path) -> None:
    image, truth = dot(np.array([[0, 0.5], [0.5, 0]]), (20, 30), (80, 60))
    odd = Landmarks(("$a_{$",), truth.points, descriptions=("$\\frac$",))
    overlay(image, odd, None, tmp_path / "a.png", case="$x^{$")
    assert case_picture(image, odd, odd, odd.names, case="$x^{$").startswith(b"\x89PNG")


def test_a_long_name_keeps_both_ends() -> None:
    assert cut("anna") == "anna"
    long = cut("a" * 100 + "b" * 100)
    assert len(long) == MOST_SIGNS and long.startswith("aa") and long.endswith("bb") and "…" in long


# Viénot, Brettel and Mollon 1999 (protan, deutan) and Brettel's tritan, on linear RGB
SEEN_BY = {
    "protan": [[0.11238, 0.88762, 0], [0.11238, 0.88762, 0], [0.00401, -0.00401, 1]],
    "deutan": [[0.29275, 0.70725, 0], [0.29275, 0.70725, 0], [-0.02234, 0.02234, 1]],
    "tritan": [[1, 0.14461, -0.14461], [0, 0.85924, 0.14076], [0, 0.85924, 0.14076]],
    "usual": np.eye(3),
}


def _linear(colour: str) -> np.ndarray:
    part = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    return np.where(part <= 0.04045, part / 12.92, ((part + 0.055) / 1.055) ** 2.4)


def _lab(rgb: np.ndarray) -> np.ndarray:
    xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]) @ rgb.clip(0, 1)
    f = np.cbrt(xyz / [0.9505, 1, 1.089])
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def _apart(one: str, two: str) -> float:
    """Distance in CIE Lab, the least over kinds of colour vision."""
    return min(
        float(np.linalg.norm(_lab(m @ _linear(one)) - _lab(m @ _linear(two)))) for m in map(np.array, SEEN_BY.values())
    )


def test_truth_and_prediction_differ_in_any_colour_vision() -> None:
    assert _apart("#d62728", "#2ca02c") < 30  # red and green do not: the measure bites
    assert _apart(TRUTH, PREDICTION) > 45
    script = (Path(pictures.__file__).parents[1] / "evaluation" / "viewer.js.j2").read_text()
    assert f'TRUTH = "{TRUTH}", FOUND = "{PREDICTION}"' in script


def test_a_point_outside_the_image_is_drawn(tmp_path: Path) -> None:
    image, truth = dot(ORIENTATIONS[0], (5, 8, 4), (12, 14, 10))
    far = Landmarks(("dot",), truth.points + 500)
    assert case_picture(image, far, far, ["dot"]).startswith(b"\x89PNG")
    overlay(image, far, truth, tmp_path / "a.png")


def test_an_unwritable_overlay_is_one_line(tmp_path: Path) -> None:
    image, truth = dot(ORIENTATIONS[0], (5, 8, 4), (12, 14, 10))
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        overlay(image, truth, None, tmp_path / "file" / "a.png")
