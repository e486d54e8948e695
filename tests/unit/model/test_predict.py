"""From images to files: what is written, what is skipped, what is refused before any work."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import tiny
from anatomark.cases.find import find_images_as_cases, image_stem
from anatomark.core.grid import Grid
from anatomark.core.image import Image
from anatomark.core.landmarks import Landmarks
from anatomark.errors import InputError
from anatomark.io.confidence import with_confidence
from anatomark.io.images import read_image, write_image
from anatomark.io.landmarks import read_landmarks
from anatomark.model.confidence.radius import radii
from anatomark.model.config import make_config
from anatomark.model.model import Model, plain_flags
from anatomark.model.predict import load, predict
from anatomark.model.run_files import write_list
from anatomark.progress import Reporter
from anatomark.training.fit import fit

tiny.register()


@pytest.fixture(scope="module", params=[3, 2])
def home(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp(f"predict{request.param}")
    study = tiny.write_study(folder / "data", 3, ndim=request.param)
    fit(study, folder / "run", make_config(method="tiny", steps=4), report=Reporter(quiet=True))
    return folder


@pytest.fixture(scope="module")
def model(home: Path) -> Model:
    return load(home / "run")


def _images(home: Path) -> list[Path]:
    return sorted([*home.glob("data/*.png"), *home.glob("data/*.nii.gz")])


def test_files_agree_with_what_the_model_says(home: Path, model: Model, tmp_path: Path) -> None:
    image = _images(home)[0]
    outcomes = predict(model, [image], tmp_path, spacing=2.0 if model.ndim == 2 else None)
    assert [o.state for o in outcomes] == ["written"]
    endings = {"mrk.json", "json", *(["csv"] if model.ndim == 2 else [])}
    assert {p.name for p in tmp_path.iterdir()} == {f"case0.{e}" for e in endings}
    expected = model.predict(image, 2.0 if model.ndim == 2 else None)
    facts = tiny.read_json(tmp_path / "case0.json")
    assert facts["model"] == model.hash
    assert facts["image"] == str(image)
    assert facts["seconds"] > 0
    for entry, point in zip(facts["landmarks"], expected.landmarks.points, strict=True):
        np.testing.assert_allclose(entry["position"], point)
        assert entry["score"] == 0.93
        np.testing.assert_allclose(entry["covariance"], np.eye(model.ndim))
    marks = read_landmarks(tmp_path / "case0.mrk.json")
    assert marks.names == expected.landmarks.names == model.names
    np.testing.assert_allclose(marks.points[:, : model.ndim], expected.landmarks.points, atol=1e-6)
    assert (tmp_path / "case0.mrk.json").read_text().count("p=0.93") == len(marks)
    assert marks.score is not None and marks.score.tolist() == [0.93] * len(marks) and not any(marks.descriptions)


def test_a_table_in_2d_holds_mm_and_pixels(home: Path, model: Model, tmp_path: Path) -> None:
    if model.ndim == 3:
        predict(model, _images(home)[:1], tmp_path, format="csv")
        np.testing.assert_allclose(
            read_landmarks(tmp_path / "case0.csv").points, model.predict(_images(home)[0]).landmarks.points, atol=1e-4
        )
        return
    predict(model, _images(home)[:1], tmp_path, spacing=2.0)
    lines = [x for x in (tmp_path / "case0.csv").read_text().splitlines() if not x.startswith("#")]
    header = lines[0].split(",")
    row = dict(zip(header, lines[1].split(","), strict=True))
    assert float(row["x_mm"]) == pytest.approx(2 * float(row["x_px"]), abs=1e-3)


def test_a_manifest_gives_names_and_spacing(home: Path, model: Model, tmp_path: Path) -> None:
    outcomes = predict(model, [home / "data" / "cases.csv"], tmp_path, pictures=True)
    assert [o.stem for o in outcomes] == ["case0", "case1", "case2"]
    assert {o.state for o in outcomes} == {"written"}
    assert (tmp_path / "case1.png").read_bytes()[:4] == b"\x89PNG"


def test_a_damaged_image_of_a_manifest_costs_one_case(home: Path, model: Model, tmp_path: Path) -> None:
    shutil.copytree(home / "data", tmp_path / "data")
    broken = tmp_path / "data" / _images(home)[1].name
    broken.write_bytes(broken.read_bytes()[:40])
    outcomes = predict(model, [tmp_path / "data" / "cases.csv"], tmp_path / "out")
    assert [o.state for o in outcomes] == ["written", "failed", "written"]
    assert broken.name in outcomes[1].reason and "\n" not in outcomes[1].reason


def test_finished_cases_of_the_same_model_are_skipped(home: Path, model: Model, tmp_path: Path) -> None:
    cases = home / "data" / "cases.csv"
    predict(model, [cases], tmp_path)
    (tmp_path / "case1.json").unlink()
    (tmp_path / "case1.mrk.json").unlink()
    if model.ndim == 2:
        (tmp_path / "case1.csv").unlink()
    before = (tmp_path / "case0.mrk.json").stat().st_mtime_ns
    assert [o.state for o in predict(model, [cases], tmp_path)] == ["skipped", "written", "skipped"]
    assert (tmp_path / "case0.mrk.json").stat().st_mtime_ns == before
    assert {o.state for o in predict(model, [cases], tmp_path, overwrite=True)} == {"written"}
    assert [o.state for o in predict(model, [cases], tmp_path, pictures=True)] == ["written"] * 3


def test_results_of_another_model_are_not_mixed(home: Path, model: Model, tmp_path: Path) -> None:
    run = Path(shutil.copytree(home / "run", tmp_path / "other"))
    (run / "calibration.json").write_text('{"pooled": {"radius90_mm": 3.0}}')
    write_list(run)
    other, cases, out = load(run), home / "data" / "cases.csv", tmp_path / "out"
    predict(model, [cases], out)
    before = {p: p.stat().st_mtime_ns for p in out.iterdir()}
    with pytest.raises(InputError, match="`overwrite`"):
        predict(other, [cases], out)
    assert before == {p: p.stat().st_mtime_ns for p in out.iterdir()}
    predict(other, [cases], out, overwrite=True)
    facts = tiny.read_json(out / "case0.json")
    assert facts["model"] == other.hash
    assert facts["landmarks"][0]["radius90"] == 3.0
    assert "r90=3.0mm" in (out / "case0.mrk.json").read_text()


def test_a_changed_image_is_not_taken_for_the_old_one(home: Path, model: Model, tmp_path: Path) -> None:
    if model.ndim == 2:
        pytest.skip("once is enough")
    image = Path(shutil.copy(_images(home)[0], tmp_path / "scan.nii.gz"))
    predict(model, [image], tmp_path / "out")
    write_image(read_image(_images(home)[1]), image)
    with pytest.raises(InputError, match="another model or image"):
        predict(model, [image], tmp_path / "out")


def test_two_inputs_with_one_stem_are_refused_before_any_work(home: Path, model: Model, tmp_path: Path) -> None:
    first = _images(home)[0]
    (tmp_path / "more").mkdir()
    twin = Path(shutil.copy(first, tmp_path / "more" / first.name))
    with pytest.raises(InputError, match="'case0'") as error:
        predict(model, [first, twin], tmp_path / "out", spacing=2.0)
    assert str(first) in str(error.value) and str(twin) in str(error.value)
    assert not (tmp_path / "out").exists()


def test_one_bad_image_does_not_stop_the_others(home: Path, model: Model, tmp_path: Path) -> None:
    good, bad = _images(home)[:2]
    broken = tmp_path / bad.name
    broken.write_bytes(bad.read_bytes()[:100])
    outcomes = predict(model, [broken, good], tmp_path / "out", spacing=2.0 if model.ndim == 2 else None)
    assert [o.state for o in outcomes] == ["failed", "written"]
    assert str(broken) in outcomes[0].reason
    assert {p.name.split(".")[0] for p in (tmp_path / "out").iterdir()} == {good.name.split(".")[0]}


def test_an_image_of_another_dimension_is_refused(model: Model) -> None:
    other, _ = tiny.blobs(0, ndim=5 - model.ndim, size=12)
    with pytest.raises(InputError, match=f"for {model.ndim}D images"):
        model.predict(other)


def test_a_trailing_axis_of_length_one_is_2d(model: Model) -> None:
    if model.ndim == 3:
        return
    flat, _ = tiny.blobs(0, ndim=2, size=16)
    axes = np.eye(3)
    axes[:, 1:] *= 2
    volume = Image(flat.array[:, None], Grid.from_axes((1, 16, 16), axes[:, ::-1] * [1, 1, 1], np.zeros(3)))
    assert model.predict(volume).landmarks.ndim == 2


def test_nan_and_constant_images_are_refused(model: Model) -> None:
    image, _ = tiny.blobs(0, ndim=model.ndim, size=16)
    holes = image.array.astype(np.float32)
    holes[0, 0] = np.nan
    for array in (holes, np.full_like(image.array, 7)):
        with pytest.raises(InputError):
            model.predict(replace(image, array=array))


def test_predicting_twice_is_the_same(home: Path, model: Model) -> None:
    image = read_image(_images(home)[0], 2.0)
    again = load(home / "run", threads=1).predict(image).landmarks
    np.testing.assert_array_equal(model.predict(image).landmarks.points, again.points)


def test_unknown_devices_and_formats(home: Path, model: Model, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="device 'gpu'"):
        load(home / "run", device="gpu")
    with pytest.raises(InputError, match=r"fcvs.*fcsv"):
        predict(model, _images(home), tmp_path, format="fcvs")
    with pytest.raises(InputError, match="no image"):
        find_images_as_cases([])


def test_radii_come_from_covariance_where_it_was_calibrated() -> None:
    points = Landmarks(("a", "b", "c"), np.zeros((3, 3)), covariance=np.stack([np.eye(3) * s for s in (1, 4, 9)]))
    facts = {
        "pooled": {"radius90_mm": 5.0, "scale90": 2.0},
        "landmarks": {"a": {"radius90_mm": None, "scale90": 3.0}, "b": {"radius90_mm": None, "scale90": None}},
    }
    assert radii(points, facts).tolist() == [3.0, 4.0, 6.0]
    plain = Landmarks(("a", "b", "c"), np.array([[0.0] * 3, [np.nan] * 3, [0.0] * 3]))
    np.testing.assert_array_equal(radii(plain, facts), [5.0, np.nan, 5.0])
    assert radii(plain, {}) is None


def test_what_is_suspicious_is_said() -> None:
    image, _ = tiny.blobs(0)
    points = np.array([[10.0, 10, 10], [100, 0, 0], [np.nan] * 3])
    landmarks = Landmarks(("in", "out", "gone"), points, score=np.array([0.2, 0.9, np.nan]))
    assert plain_flags(landmarks, image) == ["outside the image: out", "low score: in", "not found: gone"]


def test_descriptions_carry_score_and_radius() -> None:
    landmarks = Landmarks(
        ("a", "b"), np.zeros((2, 3)), score=np.array([0.931, np.nan]), radius90=np.array([1.24, 2.0]),
        descriptions=("AC", ""),
    )  # fmt: skip
    assert with_confidence(landmarks) == ("AC p=0.93 r90=1.2mm", "r90=2.0mm")


def test_stems(tmp_path: Path) -> None:
    assert image_stem("a/b.c.nii.gz") == "b.c"
    assert image_stem("x.png") == "x"
    (tmp_path / "series.1").mkdir()
    assert image_stem(tmp_path / "series.1") == "series.1"


def test_a_flat_volume_is_a_picture_for_a_2d_model(home: Path, model: Model, tmp_path: Path) -> None:
    if model.ndim != 2:
        pytest.skip("about 2D models")
    picture = read_image(_images(home)[0], 2.0)
    grid = Grid.from_axes((1, *picture.grid.shape), np.eye(3)[:, ::-1] * 2.0, (0, 0, 0))
    write_image(Image(picture.array[:, None], grid), tmp_path / "flat.nii.gz")
    outcomes = predict(model, [tmp_path / "flat.nii.gz"], tmp_path / "found", pictures=True)
    assert [o.state for o in outcomes] == ["written"]
    found = read_landmarks(tmp_path / "found" / "flat.csv", case="flat")
    np.testing.assert_allclose(found.points, model.predict(picture).landmarks.points)
