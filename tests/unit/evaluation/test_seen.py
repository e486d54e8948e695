"""An evaluation says which of its cases the model knows."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

import tiny
from anatomark.cases.case import Case
from anatomark.cases.content import BLOCK, digest_of
from anatomark.cases.manifest import read_manifest
from anatomark.errors import InputError
from anatomark.evaluation.evaluate import evaluate
from anatomark.evaluation.seen import seen_notes
from anatomark.io.images import write_image
from anatomark.model.predict import load
from anatomark.model.run_folder import load_run
from anatomark.training.fit import fit
from anatomark.training.start import cache_facts

tiny.register()
SPLITS = ["train", "train", "val", "test", "train"]
SHORT = {"method": "tiny", "steps": 2, "set": ["refine.enabled=false"]}


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """case0, case1 and case4 to learn from, case2 to choose by, case3 to test on, which is new."""
    return tiny.write_study(tmp_path_factory.mktemp("cases"), 5, splits=SPLITS)


@pytest.fixture(scope="module")
def run(cases: Path) -> Path:
    return fit(cases, cases.parent / "run", **SHORT).run


def test_cases_that_a_model_learned_from_are_named_wherever_they_lie(cases: Path, run: Path, tmp_path: Path) -> None:
    text = cases.read_text()
    for k, (name, split) in enumerate(zip(["new", "b", "c", "d", "e"], SPLITS, strict=True)):
        image = shutil.copy(cases.parent / f"case{k}.nii.gz", tmp_path / f"{name}.nii.gz")
        text = text.replace(f"case{k},case{k}.nii.gz", f"{name},{image}").replace(f",{split},", ",test,")
    text = text.replace(",case", f",{cases.parent}/case")
    (tmp_path / "cases.csv").write_text(text)
    result = evaluate(str(run), tmp_path / "cases.csv", tmp_path / "out")
    learned, chose = result.notes
    assert learned.startswith("3 of 5 cases were learned from by this model") and learned.endswith(": new, b, e.")
    assert chose.startswith("1 of 5 cases chose this model's weights (validation)") and chose.endswith(": c.")
    assert tiny.read_json(tmp_path / "out" / "summary.json")["notes"] == [learned, chose]
    assert "were learned from by this model" in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    again = evaluate(tmp_path / "out" / "predictions", tmp_path / "cases.csv", tmp_path / "again")
    assert again.notes == []  # a folder of predictions does not say of which model it is


def test_nothing_is_said_of_new_cases(cases: Path, run: Path, tmp_path: Path) -> None:
    assert evaluate(str(run), cases, tmp_path / "out").notes == []


def test_what_weights_came_from_counts_too_and_of_models_all(cases: Path, run: Path, tmp_path: Path) -> None:
    other = tiny.write_study(tmp_path / "other", 3, splits=["test", "test", "test", "train"])
    shutil.copy(cases.parent / "case3.nii.gz", tmp_path / "other" / "case3.nii.gz")
    shutil.copy(cases.parent / "case3.mrk.json", tmp_path / "other" / "case3.mrk.json")
    other.write_text(other.read_text() + "case3,case3.nii.gz,case3.mrk.json,train,\n")
    own = fit(other, tmp_path / "own", val_fraction=0, **SHORT).run
    after = fit(other, tmp_path / "after", init=run, val_fraction=0, **SHORT).run
    every = read_manifest(cases).cases
    assert [len(note.split(": ")[-1].split(", ")) for note in seen_notes(load(after), every)] == [4, 1]
    assert [note[:6] for note in seen_notes(load(own), every)] == ["1 of 5"]
    for model in (load(f"{run}+{own}"), load(f"{run}+{own}", tta=2)):
        assert [note[:6] for note in seen_notes(model, every)] == ["4 of 5", "1 of 5"]


def test_a_run_of_an_earlier_version_says_nothing(cases: Path, run: Path, tmp_path: Path) -> None:
    old = Path(shutil.copytree(run, tmp_path / "old"))
    plan = (old / "plan.json").read_text()
    images = tiny.read_json(old / "plan.json")["images"]
    for key in ("learned", "chosen"):
        del images[key]
    document = tiny.json.loads(plan) | {"images": images}
    (old / "plan.json").write_text(tiny.json.dumps(document))
    (old / "SHA256SUMS").unlink()
    assert load(str(old)).hash == load(str(run)).hash
    assert seen_notes(load(str(old)), read_manifest(cases).cases) == []


def test_working_images_kept_on_disk_do_not_hang_on_which_the_others_are(run: Path) -> None:
    stored = load_run(run)
    images = stored.plan.images
    assert images is not None and images.learned and images.chosen
    other = replace(stored.plan, images=images.model_copy(update={"learned": [], "chosen": []}))
    assert cache_facts(stored.config, other) == cache_facts(stored.config, stored.plan)


@pytest.mark.parametrize("at", [0, 2 * BLOCK, 4 * BLOCK - 1])
def test_digests_follow_the_bytes(tmp_path: Path, at: int) -> None:
    one, same, other = (tmp_path / f"{name}.nrrd" for name in ("one", "same", "other"))
    data = bytearray(4 * BLOCK)
    one.write_bytes(data)
    same.write_bytes(data)
    data[at] = 1
    other.write_bytes(data)
    assert digest_of(Case("a", one)) == digest_of(Case("b", same)) != digest_of(Case("c", other))


def test_digests_of_folders_of_detached_voxels_and_of_what_is_no_file(tmp_path: Path) -> None:
    for name, slices in (("a", b"12"), ("b", b"21"), ("c", b"13")):
        (tmp_path / name).mkdir()
        for k, byte in enumerate(slices):
            (tmp_path / name / f"{name}{k}.dcm").write_bytes(bytes([byte]))
    a, b, c = (digest_of(Case(name, tmp_path / name)) for name in "abc")
    assert a == b != c  # names and order say nothing of the content
    (tmp_path / "b" / ".DS_Store").write_text("seen")
    assert digest_of(Case("b", tmp_path / "b")) == b
    image, other = (tiny.blobs(k)[0] for k in (0, 1))
    write_image(image, tmp_path / "one.mha")
    for name, voxels in (("x", b"1"), ("y", b"2")):
        (tmp_path / f"{name}.mhd").write_text("ElementDataFile = data.raw\n")
        assert digest_of(Case(name, tmp_path / f"{name}.mhd")) == ""  # a header alone is no image
        (tmp_path / f"{name}.raw").write_bytes(voxels)
    assert digest_of(Case("x", tmp_path / "x.mhd")) != digest_of(Case("y", tmp_path / "y.mhd"))
    assert digest_of(Case("held", held=other)) == ""
    with pytest.raises(InputError, match=r"gone\.mha: cannot be read"):
        digest_of(Case("gone", tmp_path / "gone.mha"))
