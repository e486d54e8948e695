"""plan: a config that fit takes, and a page that a person can read."""

from __future__ import annotations

import base64
import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import numpy as np
import pytest

import tiny
from anatomark.core.grid import Grid
from anatomark.core.image import Image
from anatomark.core.landmarks import Landmarks
from anatomark.errors import InputError
from anatomark.io.images import read_image, write_image
from anatomark.io.jsonfile import write_json_landmarks
from anatomark.io.landmarks import read_landmarks
from anatomark.model.config import completed, read_config
from anatomark.progress import Reporter
from anatomark.training import suspects_page
from anatomark.training.plan import plan

_spec = importlib.util.spec_from_file_location(
    "volumes", Path(__file__).parents[1] / "cases" / "look" / "test_fingerprint.py"
)
assert _spec and _spec.loader
_module = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_module)
volumes = _module._volumes
FILES = ("config.yaml", "plan_report.json", "plan_suspects.html")


def test_the_config_is_complete_and_reads_back(tmp_path: Path) -> None:
    planned = plan(volumes(tmp_path), tmp_path / "out")
    config = read_config(tmp_path / "out" / "config.yaml")
    assert config == planned.config == completed(config)
    assert (config.method.name, config.method.preset, config.modality) == ("t2dl", "recommended", "image")
    assert config.minutes == 60 and config.landmarks is None and config.cache_mb >= 512
    report = json.loads((tmp_path / "out" / "plan_report.json").read_text())
    assert report == planned.summary() and report["config"] == config.model_dump(mode="json")
    assert len(report["landmarks"]) == 10 and report["suspects"][0]["case"] == "c2"
    assert all(row["reason"] for row in report["suggestions"])
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == list(FILES)


def test_suspects_are_drawn_where_they_are_and_where_they_were_expected(tmp_path: Path) -> None:
    path, seen = volumes(tmp_path), {}

    def draw(
        image: Image, expected: Landmarks, marked: Landmarks, names: Sequence[str], case: str, *_: object, **__: int
    ):
        seen[case] = {n: (marked[n], expected[n]) for n in names}
        return b"a picture"

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(suspects_page, "case_picture", draw)
        planned = plan(path, tmp_path / "out")
    page = (tmp_path / "out" / FILES[2]).read_text()
    of = {one["labels"][0]: one for one in planned.facts["suspects"] if one["case"] == "c2" and one["kind"] == "point"}
    assert of and page.count("<img") == len(seen) and base64.b64encode(b"a picture").decode() in page
    for name, one in of.items():
        where, expected = seen["c2"][name]
        assert np.allclose(expected, one["expected"]) and one["message"] in page
        assert np.linalg.norm(where - expected) == pytest.approx(one["found_mm"], rel=0.01)


def test_pictures_of_suspects_that_are_none_any_more_go_and_what_cannot_be_drawn_is_still_named(tmp_path: Path) -> None:
    path = volumes(tmp_path)
    case = SimpleNamespace(id="<c2>", landmarks=Landmarks(("a",), np.ones((1, 3))), image=Mock(side_effect=InputError))
    facts = {
        "manifest": "m",
        "suspects": [{"case": "<c2>", "labels": ["a"], "kind": "outside", "message": "a is & out"}],
    }
    page = suspects_page.suspects_page(facts, [case], Reporter(quiet=True))
    assert "<li>a is &amp; out</li>" in page and "&lt;c2&gt;" in page and "<img" not in page
    plan(path, tmp_path / "out")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / FILES[2]).write_text("MINE")
    with pytest.raises(InputError, match=r"plan_suspects\.html: exists already and is not as plan wrote it"):
        plan(path, tmp_path / "other")
    assert (tmp_path / "other" / FILES[2]).read_text() == "MINE"
    path.write_text("\n".join(line for line in path.read_text().splitlines() if not line.startswith("c2")) + "\n")
    planned = plan(path, tmp_path / "out")
    assert not planned.facts["suspects"] and not (tmp_path / "out" / FILES[2]).exists()


def test_the_page_says_what_matters(tmp_path: Path) -> None:
    planned = plan(volumes(tmp_path))
    text = "\n".join(planned.lines())
    words = ["6 train, 1 val, 1 test", "3D image, 6 .nii.gz", "6 LPS", "2 suspect annotations:", "d lies"]
    words += ["1.5 x 1.5 x 1.75 (1.5 x 1.5 x 1.5 to 1.5 x 1.5 x 2)", "landmarks outside their image"]
    for word in [*words, "the manifest has 1 validation"]:
        assert word in text, word


def test_the_table_explains_itself_and_the_next_command_is_said(tmp_path: Path) -> None:
    path = volumes(tmp_path)
    lines = plan(path, minutes=7).lines()
    text = "\n".join(lines)
    assert "from mean" in text and "size, voxels (x, y, z)" in text and "10, from .mrk.json files" in text
    assert f"next: anatomark fit {path} `minutes` 7 `out` RUN" in lines
    assert f"to see and correct what is suspect: anatomark review {path} `out` CORRECTED" in lines
    planned = plan(path, tmp_path / "a b")
    assert planned.lines()[-1] == f"next: anatomark fit {path} `config` '{tmp_path}/a b/config.yaml' `out` RUN"


def test_of_flat_images_there_are_pixels_and_of_several_formats_each_is_counted(tmp_path: Path) -> None:
    path = tiny.write_study(tmp_path / "flat", 3, ndim=2)
    mark = read_landmarks(path.parent / "case2.csv")
    write_json_landmarks(mark, path.parent / "case2.json")
    path.write_text(path.read_text().replace("case2.csv", "case2.json"))
    text = "\n".join(plan(path).lines())
    assert "size, pixels (x, y)" in text and "3, from .csv files (2 cases), .json files (1 case)" in text


def test_a_slip_in_a_label_is_named_and_the_config_is_needed(tmp_path: Path) -> None:
    path = volumes(tmp_path)
    file = next(f for f in sorted(tmp_path.glob("*.mrk.json")) if "c1" in f.name)
    file.write_text(file.read_text().replace('"label": "a"', '"label": "aa"'))
    lines = plan(path).lines()
    text = " ".join(line.strip() for line in lines)
    assert "(did you mean 'a'?)" in text
    assert f"next: anatomark plan {path} `out` DIR writes the config, which names the landmarks to learn" in lines


def test_nothing_is_written_unless_asked(tmp_path: Path) -> None:
    path = volumes(tmp_path)
    before = sorted(tmp_path.iterdir())
    assert plan(path).summary()["files"] == [] and sorted(tmp_path.iterdir()) == before
    plan(path, tmp_path / "mine.yaml")
    assert {p.name for p in tmp_path.iterdir()} - {p.name for p in before} == {"mine.yaml", *FILES[1:]}


def test_landmarks_that_nobody_marked_are_left_out(tmp_path: Path) -> None:
    path = volumes(tmp_path)
    for file in tmp_path.glob("*.mrk.json"):
        data = json.loads(file.read_text())
        for control in data["markups"][0]["controlPoints"]:
            if control["label"] == "e":
                control["positionStatus"] = "undefined"
        file.write_text(json.dumps(data))
    planned = plan(path)
    assert planned.config.landmarks == list("abcdfghij")
    assert "never marked: e" in "\n".join(planned.lines())


@pytest.mark.parametrize(("count", "phrase"), [(3, "too few cases to spare one"), (8, "manifest has 1 validation")])
def test_reasons_follow_the_number_of_cases(tmp_path: Path, count: int, phrase: str) -> None:
    path = volumes(tmp_path, count)
    if count == 3:
        path.write_text(path.read_text().replace(",val", ",train"))
    reasons = {row["key"]: row["reason"] for row in plan(path).summary()["suggestions"]}
    assert phrase in reasons["val_fraction"]


def test_bad_manifests_and_methods_are_refused_and_nothing_is_written(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        plan(tmp_path / "none.csv", tmp_path / "out")
    with pytest.raises(InputError, match="did you mean 'pin'"):
        plan(volumes(tmp_path), tmp_path / "out", method="pinn")
    assert not (tmp_path / "out").exists()


def test_the_next_command_names_each_manifest_whole(tmp_path: Path) -> None:
    """A path may hold what joins several in the heading."""
    first = tiny.write_study(tmp_path / "a + b", 3)
    assert f"next: anatomark fit '{first}' `minutes`" in "\n".join(plan(first).lines())


def test_images_without_landmarks_are_counted_apart_and_ask_for_a_teacher(tmp_path: Path) -> None:
    path = volumes(tmp_path)
    rows = path.read_text().splitlines()
    at = rows[0].split(",").index("landmarks")
    for k in [k for k, row in enumerate(rows) if ",train" in row][-2:]:
        cells = rows[k].split(",")
        rows[k] = ",".join([*cells[:at], "", *cells[at + 1 :]])
    path.write_text("\n".join(rows))
    planned = plan(path, minutes=7)
    text = "\n".join(planned.lines())
    assert planned.facts["cases"]["train"] == 4 and "4 train, 1 val, 1 test, 2 without landmarks" in text
    assert "note: 2 training images without landmarks" in text and "would use all of them" not in text
    assert f"next: anatomark fit {path} `teacher` MODEL `minutes` 7 `out` RUN" in text


def test_images_without_landmarks_are_looked_at_too(tmp_path: Path) -> None:
    path = tiny.write_study(tmp_path, 5, splits=["train"] * 4 + ["test"])
    path.write_text(path.read_text().replace("case3.nii.gz,case3.mrk.json", "case4.nii.gz,"))
    assert "case4 (test)  image  has the same image as 'case3', which is train" in "\n".join(plan(path).lines())
    image = read_image(tmp_path / "case3.nii.gz")
    affine = image.grid.affine.copy()
    affine[:3, :3] *= 20
    write_image(Image(image.array, Grid(image.grid.shape, affine)), tmp_path / "wide.nii.gz")
    path.write_text(path.read_text().replace("case4.nii.gz,,", "wide.nii.gz,,"))
    assert any("case 'case3' is 960 mm" in line for line in plan(path).facts["cautions"])
