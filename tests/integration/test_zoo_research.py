"""The models for research that come with the repository are complete, and ``predict`` prints a model's licence."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import tiny
from anatomark.cli import app as cli
from anatomark.model.predict import load

tiny.register()

FOLDER = Path(__file__).resolve().parents[2] / "zoo-research"
MODELS = sorted(p.parent for p in FOLDER.glob("*/LICENSE.txt"))
MOST_BYTES = 8_000_000


def predict(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """What ``anatomark predict`` says of its progress."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as exit:
        cli.main([str(a) for a in ("predict", *arguments)])
    said = capsys.readouterr()
    assert not exit.value.code, said.err
    return said.err


def test_every_folder_has_a_licence() -> None:
    folders = sorted(p for p in FOLDER.iterdir() if p.is_dir())
    assert MODELS and folders == MODELS


@pytest.mark.parametrize("folder", MODELS, ids=lambda p: p.name)
def test_a_licence_says_what_the_weights_are_for_in_a_few_lines(folder: Path) -> None:
    first = (folder / "LICENSE.txt").read_text(encoding="utf-8").split("\n\n")[0]
    assert len(first.splitlines()) <= 3
    assert "Weights trained on" in first and "research use only" in first and "included" in first


@pytest.mark.parametrize("folder", MODELS, ids=lambda p: p.name)
def test_a_model_for_research_is_small_loads_and_says_how_it_was_made(folder: Path) -> None:
    if not (folder / "weights.safetensors").exists():
        pytest.skip(f"{folder.name} has no weights yet")
    assert (folder / "weights.safetensors").stat().st_size <= MOST_BYTES
    card = (folder / "card.md").read_text(encoding="utf-8")
    commands = re.findall(r"^```\n(.*?)^```$", card, flags=re.M | re.S)
    assert any(line.startswith("anatomark fit ") for block in commands for line in block.splitlines())
    model = load(folder)
    assert "research use only" in model.licence and "\n" not in model.licence
    assert {str(t.dtype) for t in model.run.weights.values() if t.is_floating_point()} == {"torch.float16"}


def test_predict_prints_the_licence_beside_the_weights(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study = tiny.write_study(tmp_path / "data", 3)
    model, image = tmp_path / "model", tmp_path / "data" / "case0.nii.gz"
    with pytest.raises(SystemExit):
        cli.main(["fit", str(study), "--out", str(model), "--method", "tiny", "--steps", "2"])
    assert "licence" not in predict(capsys, model, image, "--out", tmp_path / "one")
    assert load(model).licence == ""
    (model / "LICENSE.txt").write_text("Only for tests,\nand these weights alone.\n\nMuch more that is not printed.\n")
    said = " ".join(predict(capsys, model, image, "--out", tmp_path / "two").split())
    assert "licence of the model model: Only for tests, and these weights alone." in said
    assert "Much more" not in said
    assert "Only for tests" not in predict(capsys, model, image, "--out", tmp_path / "three", "--json")


def test_without_a_note_the_licence_is_that_of_the_config(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study = tiny.write_study(tmp_path / "data", 3)
    with pytest.raises(SystemExit):
        arguments = ["--out", str(tmp_path / "model"), "--method", "tiny", "--steps", "2", "--set", "license=CC0"]
        cli.main(["fit", str(study), *arguments])
    said = predict(capsys, tmp_path / "model", tmp_path / "data" / "case0.nii.gz", "--out", tmp_path / "found")
    assert "licence of the model model: CC0" in said
