"""What a review is opened with, and how it goes on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

import anatomark.cli.service_options as options
import service
from anatomark.errors import InputError
from anatomark.io.atomic import write_json
from anatomark.progress import Reporter
from anatomark.serve.desk import Setting, gone_on
from anatomark.serve.jobs import validation_errors
from anatomark.serve.start import divided, predicted_first

QUIET = Reporter(quiet=True)


def files(folder: Path, *names: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).write_bytes(b"")
    return folder


def test_the_first_of_several_is_the_folder_of_predictions(tmp_path: Path) -> None:
    images, out = files(tmp_path / "images", "a.nii.gz"), tmp_path / "out"
    found = files(tmp_path / "found", "a.mrk.json")
    assert divided([found, images], out, None) == (found, [images])
    assert divided([tmp_path / "new", images], out, "m") == (tmp_path / "new", [images])
    assert divided([images, images], out, "m") == (out / "predictions" / "m", [images, images])
    assert divided([images], out, "runs/m") == (out / "predictions" / "m", [images])
    write_json(images / "a.json", {"model": "x", "landmarks": []})  # predict wrote beside the images
    (images / "a.mrk.json").write_bytes(b"")
    assert divided([images, images / "a.nii.gz"], out, None) == (images, [images / "a.nii.gz"])
    with pytest.raises(InputError, match="`model`"):
        divided([images / "a.nii.gz"], out, None)


def test_it_goes_on_with_the_model_that_was_trained_in_it(tmp_path: Path) -> None:
    given = Setting(tmp_path, [], tmp_path / "found", model="zoo-name")
    assert gone_on(given) is given
    said = {
        "model": "zoo-name",
        "predictions": str(tmp_path / "found"),
        "then": "models/m-1",
        "found": "predictions/m-1",
    }
    files(tmp_path / "models" / "m-1")
    write_json(tmp_path / "models" / "goes_on.json", said)
    assert gone_on(given) is given  # its predictions are gone
    files(tmp_path / "predictions" / "m-1")
    later = gone_on(given)
    assert (later.model, later.predictions) == (str(tmp_path / "models/m-1"), tmp_path / "predictions/m-1")
    other = Setting(tmp_path, [], tmp_path / "found", model="another")
    assert gone_on(other) is other


def test_validation_errors_are_counted_over_all_stages(tmp_path: Path) -> None:
    log = tmp_path / "log.csv"
    assert validation_errors(log) == []
    log.write_text("stage,step,loss,val_mm\na,5,1,\na,10,1,2.5\nb,4,1,1.5\n")
    assert validation_errors(log) == [{"step": 10, "error": 2.5}, {"step": 14, "error": 1.5}]


def test_without_the_extra_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    options.needs_extra()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install 'anatomark\[serve\]'"):
        options.needs_extra()


def test_what_would_fail_later_is_said_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images, out = files(tmp_path / "images", "a.nii.gz", " b.nii.gz"), tmp_path / "out"
    with pytest.raises(InputError, match=r"person 'A.*nnn'"):
        options.make_setting([images], out, "m", person="A\nnn")
    with pytest.raises(InputError, match="no such file"):
        options.make_setting([images], out, "m", train_with=[tmp_path / "cases.csv"])
    with pytest.raises(InputError, match="rename the image"):  # before the model is loaded
        predicted_first(Setting(out, [images], out / "predictions", "m"), False, QUIET)
    monkeypatch.setattr("getpass.getuser", lambda: "A\nnn")
    assert options.user_name() == ""


def test_what_is_not_predicted_is_predicted_first(tmp_path: Path) -> None:
    run = service.trained(tmp_path, 2, cases=3, steps=2)
    images = [tmp_path / "data" / "cases.csv"]
    own = Setting(tmp_path / "out", images, tmp_path / "out" / "predictions", str(run))
    made = predicted_first(own, False, QUIET)
    assert made.predictions.parent == tmp_path / "out" / "predictions" and made.predictions.name.startswith("tiny2d-")
    assert (made.predictions / "case2.json").exists()
    found = replace(own, predictions=tmp_path / "found")
    assert predicted_first(found, True, QUIET) == found and (tmp_path / "found" / "case0.json").exists()
    (tmp_path / "found" / "case0.json").unlink()
    predicted_first(found, True, QUIET)
    assert not (tmp_path / "found" / "case0.json").exists()  # whoever gave the folder knows why
    (tmp_path / "found" / ".anatomark.lock").write_text("")  # a run was killed
    predicted_first(found, True, QUIET)
    assert (tmp_path / "found" / "case0.json").exists()
    with pytest.raises(InputError, match="`model`"):
        predicted_first(replace(found, model=None, predictions=tmp_path / "nowhere"), True, QUIET)
