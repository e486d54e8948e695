"""A method and its refiner in one run: trained, stopped, resumed, loaded, started from other runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file

import tiny
from anatomark.errors import InputError
from anatomark.model.config import RunConfig, make_config, read_config, write_config
from anatomark.model.predict import load
from anatomark.model.run_files import write_list
from anatomark.model.run_folder import load_run
from anatomark.progress import Reporter
from anatomark.training import fit as training
from anatomark.training import loop
from anatomark.training.fit import Fitted, fit

tiny.register()
QUIET = Reporter(quiet=True)
REFINED = [
    "refine.enabled=true",
    "refine.px=32",
    "refine.width=4",
    "refine.batch=2",
    "refine.steps=6",
    "refine.passes=1",
]
ONLY = [*REFINED, "refine.only=true"]
STEPS = ["method.steps_rough=12", "method.steps_fine=6"]


class Stopped(BaseException):
    pass


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    splits = ["train"] * 4 + ["val"] * 10  # 30 errors: enough to size the sub-images
    return tiny.write_study(tmp_path_factory.mktemp("study"), 14, ndim=2, splits=splits)


@pytest.fixture(scope="module")
def plain(study: Path, tmp_path_factory: pytest.TempPathFactory) -> Fitted:
    """The method without a refiner, of settings that are not the usual ones."""
    config = make_config(method="tiny", assignments=["method.side=6", *STEPS])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("anatomark.training.finish.judged", lambda *_: None)  # it must not settle on the mean shape
        return fit(study, tmp_path_factory.mktemp("plain") / "run", config, report=QUIET)


@pytest.fixture(scope="module")
def refined(study: Path, tmp_path_factory: pytest.TempPathFactory) -> Fitted:
    return fit(study, tmp_path_factory.mktemp("refined") / "run", composed(), report=QUIET)


def composed(*more: str) -> RunConfig:
    return make_config(method="tiny", assignments=[*REFINED, *STEPS, *more])


def weights(run: Path, part: str = "") -> dict[str, Any]:
    state = load_file(run / "weights.safetensors")
    return {k.removeprefix(part): v for k, v in state.items() if k.startswith(part)}


def same(a: dict[str, Any], b: dict[str, Any]) -> bool:
    return a.keys() == b.keys() and all(bool((a[k] == b[k]).all()) for k in a)


def _stop_at(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    steps = {"done": 0}
    real = loop.optimiser_step

    def step(state: Any, batch: Any) -> Any:
        if steps["done"] == count:
            raise Stopped
        steps["done"] += 1
        return real(state, batch)

    monkeypatch.setattr(loop, "optimiser_step", step)
    monkeypatch.setattr(loop, "SAVE_EVERY_S", -1.0)


def identical(a: Path, b: Path) -> None:
    for name in ("weights.safetensors", "calibration.json", "plan.json"):
        assert (a / name).read_bytes() == (b / name).read_bytes(), name


# ---------------------------------------------------------------------- one run


def test_the_run_holds_both(refined: Fitted) -> None:
    levels = tiny.read_json(refined.run / "plan.json")["facts"]["refine"]["levels"]
    assert [x["source"] for x in levels] == ["validation", "validation"]
    assert [x["errors"] for x in levels] == [30, 30]
    assert all(x["coverage"] >= 0.9 and x["spacing_mm"] > 0 for x in levels)
    config = read_config(refined.run / "config.yaml")
    assert list(config.stage_steps) == ["rough", "fine", "refine1", "refine2"]
    assert config.refine.enabled is True
    assert weights(refined.run, "method.")
    assert weights(refined.run, "refine.")
    assert "Refiner, level 2" in (refined.run / "card.md").read_text()
    assert not (refined.run / "cache").exists()


def test_folds_size_the_final_model(tmp_path: Path) -> None:
    cases = tiny.write_study(tmp_path / "study", 10, ndim=2, splits=["train"] * 10)
    settings = ["val_fraction=0", "refine.coverage=0.9"]
    run = fit(cases, tmp_path / "run", composed(*settings), folds=2, report=QUIET).run
    levels = tiny.read_json(run / "plan.json")["facts"]["refine"]["levels"]
    assert [(x["source"], x["errors"]) for x in levels] == [("out-of-fold", 30)] * 2
    for folder in (run / "folds" / "1", run / "folds" / "2"):
        fold = tiny.read_json(folder / "plan.json")["facts"]["refine"]["levels"]
        assert len(fold) == 2 and all(x["source"].startswith("guessed") for x in fold)
    assert (run / "folds" / "out_of_fold.csv").exists()
    assert "out-of-fold" in (run / "card.md").read_text()


def test_the_run_is_loaded_and_predicts_with_both(refined: Fitted) -> None:
    model = load(refined.run)
    image, truth = tiny.blobs(99, 2)
    found = model.predict(image)
    assert found.landmarks.names == truth.names
    first = model.composed.method.locate(image)
    assert np.abs(found.landmarks.points - first.points).max() > 1e-3
    np.testing.assert_array_equal(found.landmarks.points, load(refined.run).predict(image).landmarks.points)
    assert refined.validation is not None  # what was measured at the end is what the loaded model does
    again = load_run(refined.run).build()
    case = refined.validation.cases[0]
    image = tiny.blobs(int(case.removeprefix("case")), 2)[0]
    np.testing.assert_allclose(again.locate(image).points, refined.validation.predictions[0].points, atol=1e-4)


@pytest.mark.parametrize(("at", "more"), [(15, []), (20, ["workers=2"]), (27, [])])  # fine, refine1, refine2
def test_resumed_weights_are_the_same_to_the_bit(
    study: Path, refined: Fitted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int, more: list[str]
) -> None:
    cache = f"cache={tmp_path / 'cache'}"  # one that stays
    with monkeypatch.context() as patch:
        _stop_at(patch, at)
        with pytest.raises(Stopped):
            fit(study, tmp_path / "cut", composed(cache), report=QUIET)
    cached = sorted(p.name for p in (tmp_path / "cache").iterdir())
    assert len(cached) == 14
    again = fit(study, tmp_path / "cut", composed(*more), resume=True, report=QUIET)
    identical(refined.run, again.run)
    assert sorted(p.name for p in (tmp_path / "cache").iterdir()) == cached  # nothing was read twice


@pytest.mark.parametrize(("more", "errors"), [(["val_fraction=0"], 0), ([], 12)])
def test_without_enough_validation_the_reach_is_guessed(tmp_path: Path, more: list[str], errors: int) -> None:
    study = tiny.write_study(tmp_path, 2, ndim=2)  # four augmented copies of three landmarks stand in
    config = composed("refine.levels=1", "refine.steps=2", *more)
    plan = tiny.read_json(fit(study, tmp_path / "run", config, report=QUIET).run / "plan.json")
    level = plan["facts"]["refine"]["levels"][0]
    assert level["source"].startswith("guessed")
    assert level["errors"] == errors


# ---------------------------------------------------------------------- from other runs


@pytest.fixture(scope="module")
def only(study: Path, plain: Fitted, tmp_path_factory: pytest.TempPathFactory) -> Fitted:
    """The refiner alone, on top of the method."""
    out = tmp_path_factory.mktemp("only") / "run"
    return fit(study, out, make_config(assignments=ONLY), init=plain.run, report=QUIET)


def test_only_leaves_the_method_as_it_is(plain: Fitted, only: Fitted) -> None:
    run = only.run
    assert same(weights(run, "method."), weights(plain.run, "method."))
    config = read_config(run / "config.yaml")
    assert config.method == read_config(plain.run / "config.yaml").method  # taken over, with its settings
    assert config.learning_rate_factor == 1.0
    assert list(config.stage_steps) == ["refine1", "refine2"]
    level = tiny.read_json(run / "plan.json")["facts"]["refine"]["levels"][0]
    assert plain.validation is not None
    assert level["reach_mm"] == pytest.approx(np.quantile(plain.validation.errors, 0.99))
    image, _ = tiny.blobs(99, 2)
    model = load(run)
    np.testing.assert_array_equal(
        model.composed.method.locate(image).points, load(plain.run).composed.locate(image).points
    )
    assert np.abs(model.predict(image).landmarks.points - load(plain.run).predict(image).landmarks.points).max() > 1e-3


@pytest.mark.parametrize("at", [0, 8])
def test_only_is_resumed_without_the_other_run(
    study: Path, plain: Fitted, only: Fitted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    with monkeypatch.context() as patch:
        _stop_at(patch, at)
        with pytest.raises(Stopped):
            fit(study, tmp_path / "cut", make_config(assignments=ONLY), init=plain.run, report=QUIET)
    identical(only.run, fit(study, tmp_path / "cut", resume=True, report=QUIET).run)


def test_killed_while_the_given_weights_are_judged(
    study: Path, plain: Fitted, only: Fitted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:

    def killed(state: Any) -> None:
        raise Stopped

    with monkeypatch.context() as patch:
        patch.setattr(training, "_judge_initial", killed)
        with pytest.raises(Stopped):
            fit(study, tmp_path / "cut", make_config(assignments=ONLY), init=plain.run, report=QUIET)
    identical(only.run, fit(study, tmp_path / "cut", resume=True, report=QUIET).run)


def test_only_again_begins_with_the_refiner_there(study: Path, refined: Fitted, tmp_path: Path) -> None:
    config = make_config(assignments=[*ONLY, "refine.steps=1", "learning_rate_factor=1e-6"])
    run = fit(study, tmp_path / "run", config, init=refined.run, report=QUIET).run
    before, after = weights(refined.run, "refine."), weights(run, "refine.")
    assert same(weights(run, "method."), weights(refined.run, "method."))
    for key in before:
        if "running" not in key and "num_batches" not in key:
            np.testing.assert_allclose(after[key], before[key], atol=1e-4)


def test_only_needs_a_model_and_says_so(study: Path, plain: Fitted, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"refine.only: give the model to refine as `init`"):
        fit(study, tmp_path / "run", make_config(method="tiny", assignments=ONLY), report=QUIET)
    assert not (tmp_path / "run").exists()
    with pytest.raises(InputError, match=r"is of method tiny, not global_to_local"):
        fit(
            study,
            tmp_path / "run",
            make_config(method="global_to_local", assignments=ONLY),
            init=plain.run,
            report=QUIET,
        )
    with pytest.raises(InputError, match="only=true"):
        make_config(assignments=["refine.only=true", "refine.enabled=false"])
    subset = make_config(assignments=[*ONLY, "landmarks=[b, a]"])
    with pytest.raises(InputError, match="landmarks must be those of `init`"):
        fit(study, tmp_path / "run", subset, init=plain.run, report=QUIET)
    assert not (tmp_path / "run").exists()
    assert make_config(assignments=["refine.only=true"]).refine.only


def test_a_refiner_may_be_added_and_dropped(study: Path, plain: Fitted, refined: Fitted, tmp_path: Path) -> None:
    slow = ["learning_rate_factor=1e-9", *STEPS]
    added = make_config(method="tiny", assignments=[*REFINED, *slow, "method.side=6", "refine.levels=1"])
    run = fit(study, tmp_path / "added", added, init=plain.run, report=QUIET).run
    for key, value in weights(plain.run, "method.").items():
        if key.startswith("rough"):
            np.testing.assert_allclose(weights(run)[f"method.{key}"], value, atol=1e-5)
    dropped = make_config(method="tiny", assignments=slow)
    run = fit(study, tmp_path / "dropped", dropped, init=refined.run, report=QUIET).run
    kept = weights(refined.run, "method.")
    assert weights(run, "method.").keys() == kept.keys()
    for key, value in weights(run, "method.").items():
        if key.startswith("rough"):
            np.testing.assert_allclose(value, kept[key], atol=1e-5)
    assert "refine" not in tiny.read_json(run / "plan.json")["facts"]


@pytest.mark.parametrize("which", ["plain", "refined"])
def test_a_models_hash_knows_its_refiner_only_where_it_has_one(which: str, request: pytest.FixtureRequest) -> None:
    path = request.getfixturevalue(which).run / "config.yaml"
    (path.parent / "SHA256SUMS").unlink()  # what is changed by hand would be refused
    before, text = load_run(path.parent).hash, path.read_text()
    config = read_config(path)
    config.refine.looks += 1
    try:
        write_config(path, config)
        write_list(path.parent)
        assert (load_run(path.parent).hash == before) == (which == "plain")
    finally:
        path.write_text(text)
        write_list(path.parent)
