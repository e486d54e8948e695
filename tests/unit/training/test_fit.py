"""The trainer: stages, frozen parts, schedules, averages, budgets, starting from another model, folds."""

from __future__ import annotations

import csv
import io
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

import anatomark
import tiny
from anatomark.cases.division import read_division
from anatomark.core.landmarks import Landmarks
from anatomark.errors import InputError
from anatomark.io.landmarks import write_landmarks
from anatomark.methods.base import Evidence, Stage
from anatomark.model.compose import Composed, Composition
from anatomark.model.confidence.radius import calibrated
from anatomark.model.config import RunConfig, make_config, read_config
from anatomark.model.residuals import Residuals
from anatomark.model.run_folder import load_run
from anatomark.progress import Reporter, clock
from anatomark.training import loop, start
from anatomark.training.fit import fit
from anatomark.training.folds import split_folds
from anatomark.training.optimise import rate_factor
from anatomark.training.validate import from_plain, to_plain

tiny.register()
QUIET = Reporter(quiet=True)


def config(*assignments: str, **given: Any) -> RunConfig:
    return make_config(method="tiny", assignments=assignments, **given)


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_study(tmp_path_factory.mktemp("study"), 6)


def rows(run: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO((run / "log.csv").read_text())))


def test_it_learns(study: Path, tmp_path: Path) -> None:
    short = fit(study, tmp_path / "short", config(steps=2), report=QUIET)
    long = fit(study, tmp_path / "long", config(steps=100), report=QUIET)
    assert long.validation is not None and short.validation is not None
    assert long.validation.selection_mm() < 0.6 * short.validation.selection_mm()
    assert not (tmp_path / "long" / "cache").exists()
    assert not (tmp_path / "long" / "last.ckpt").exists()


def test_steps_are_dealt_over_the_stages_and_written_down(study: Path, tmp_path: Path) -> None:
    fit(study, tmp_path / "run", config(steps=10), report=QUIET)
    assert read_config(tmp_path / "run" / "config.yaml").stage_steps == {"rough": 6, "fine": 4}
    last = {r["stage"]: r["step"] for r in rows(tmp_path / "run")}
    assert last == {"rough": "6", "fine": "4"}


def test_a_method_that_learns_nothing_is_dealt_no_steps() -> None:
    stages = [Stage("a", 3, 1), Stage("b", 1, 1)]
    assert start._dealt([], 10) == start._dealt([], None) == []
    assert start._dealt(stages, None) == stages
    assert [s.steps for s in start._dealt(stages, 40)] == [30, 10]


def test_only_a_stages_modules_are_trained(study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, torch.Tensor, torch.Tensor, bool]] = []

    def spy(self: tiny.Tiny, stage: Stage) -> None:
        seen.append((stage.name, self.rough[0].weight.clone(), self.fine[0].weight.clone(), self.rough[1].training))

    monkeypatch.setattr(tiny.Tiny, "after_step", spy)
    fit(study, tmp_path / "run", config(steps=10), report=QUIET)
    rough = [s for s in seen if s[0] == "rough"]
    fine = [s for s in seen if s[0] == "fine"]
    assert all(torch.equal(s[2], rough[0][2]) for s in rough)
    assert not torch.equal(rough[0][1], rough[-1][1])
    assert all(torch.equal(s[1], fine[0][1]) for s in fine)
    assert not torch.equal(fine[0][2], fine[-1][2])
    assert all(s[3] for s in rough) and not any(s[3] for s in fine)


def test_a_stage_is_told_what_the_one_before_found(
    study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[Any] = []
    monkeypatch.setattr(tiny.Tiny, "begin", lambda self, stage, evidence: told.append((stage.name, evidence)))
    fit(study, tmp_path / "run", config(steps=6), report=QUIET)
    assert told[0] == ("rough", Evidence())
    name, evidence = told[1]
    assert (name, evidence.source) == ("fine", "validation")
    assert evidence.predictions.keys() == evidence.truth.keys()
    assert len(evidence.truth) == 1
    assert next(iter(evidence.predictions.values())).names == ("a", "b", "c")


def test_the_best_weights_of_a_stage_are_kept(study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    errors = iter([5.0, 2.0, 9.0, 4.0, 3.0, 8.0])
    monkeypatch.setattr(Residuals, "selection_mm", lambda self: next(errors))
    kept: list[torch.Tensor] = []
    validate = loop._validate

    def spy(state: Any) -> float:
        kept.append(state.method.method.fine[0].weight.clone())
        return validate(state)

    monkeypatch.setattr(loop, "_validate", spy)
    fit(
        study,
        tmp_path / "run",
        config("validate_every={rough: 2, fine: 2}", "stage_steps={rough: 6, fine: 6}"),
        report=QUIET,
    )
    weights = load_run(tmp_path / "run").weights["method.fine.0.weight"]
    assert torch.equal(weights, kept[4])
    assert not torch.equal(weights, kept[5])


def test_averaged_weights_are_what_is_validated_and_kept(study: Path, tmp_path: Path) -> None:
    plain = fit(study, tmp_path / "plain", config(steps=20), report=QUIET)
    mean = fit(study, tmp_path / "mean", config("method.ema=0.9", steps=20), report=QUIET)
    a, b = (load_run(f.run).weights["method.rough.0.weight"] for f in (plain, mean))
    assert not torch.equal(a, b)
    assert (a - b).abs().max() < 0.1


def test_examples_may_come_from_the_current_weights(study: Path, tmp_path: Path) -> None:
    a = fit(study, tmp_path / "a", config("method.collected=true", steps=15), report=QUIET)
    b = fit(study, tmp_path / "b", config(steps=15), report=QUIET)
    wa, wb = (load_run(f.run).weights for f in (a, b))
    assert torch.equal(wa["method.rough.0.weight"], wb["method.rough.0.weight"])
    assert not torch.equal(wa["method.fine.0.weight"], wb["method.fine.0.weight"])
    assert int(wa["method.seen"]) == 15


@pytest.mark.parametrize("workers", [0, 2])
def test_the_same_seed_gives_the_same_weights(study: Path, tmp_path: Path, workers: int) -> None:
    fit(study, tmp_path / "a", config(steps=12, workers=0), report=QUIET)
    fit(study, tmp_path / "b", config(steps=12, workers=workers), report=QUIET)
    fit(study, tmp_path / "c", config("seed=1", steps=12), report=QUIET)
    a, b, c = ((tmp_path / x / "weights.safetensors").read_bytes() for x in "abc")
    assert a == b != c


def test_minutes_become_steps_and_the_config_repeats_the_run(
    study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "_time_step", lambda state, seconds: 3.0)
    monkeypatch.setattr(loop, "_time_validation", lambda state: 1.0)
    fit(study, tmp_path / "a", config(minutes=2), report=QUIET)
    written = read_config(tmp_path / "a" / "config.yaml")
    assert written.minutes is None
    # 80 s of 120 are the first stage's share, 8 of them for 8 validations; some seconds have passed before
    assert 16 <= written.stage_steps["rough"] <= 24
    assert written.validate_every["rough"] in (-(-written.stage_steps["rough"] // n) for n in (7, 8))
    assert (
        20 <= written.stage_steps["fine"] <= 37
    )  # the steps were quicker than measured: what is left is the last stage's
    fit(study, tmp_path / "b", make_config(tmp_path / "a" / "config.yaml"), report=QUIET)
    assert (tmp_path / "a" / "weights.safetensors").read_bytes() == (
        tmp_path / "b" / "weights.safetensors"
    ).read_bytes()


def test_measuring_changes_nothing(study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before: list[dict[str, torch.Tensor]] = []
    real = loop._time_step

    def spy(state: Any, seconds: float) -> float:
        before.append({k: v.clone() for k, v in state.method.state_dict().items()})
        measured = real(state, 0.01)
        assert measured > 0
        assert all(torch.equal(v, before[-1][k]) for k, v in state.method.state_dict().items())
        return 20.0

    monkeypatch.setattr(loop, "_time_step", spy)
    fit(study, tmp_path / "run", config(minutes=1), report=QUIET)
    assert len(before) == 2


def test_what_a_round_begins_with_is_shared_by_its_steps() -> None:
    seconds = np.array([5.0, 2, 1, 1, 1, 1, 1, 1, 1, 1])
    begins = np.arange(10) == 0
    assert loop._mean_step(seconds, np.ones(10, dtype=bool)) == pytest.approx(1)  # nothing is collected
    assert loop._mean_step(seconds, begins) == pytest.approx(1 + 4 / loop.ROUND)
    seconds[[4, 8]] = 3.0  # later rounds are known without the warming up
    assert loop._mean_step(seconds, np.arange(10) % 4 == 0) == pytest.approx(1 + 2 / 4)
    assert loop._mean_step(seconds[:2], begins[:2]) == pytest.approx(2 + 3 / loop.ROUND)


def test_schedules() -> None:
    cosine, flat = Stage("x", 100, 1, warmup=10), Stage("x", 100, 1, warmup=0, schedule="constant")
    factors = [rate_factor(cosine, s) for s in range(100)]
    assert factors[0] < 0.1 and max(factors) == factors[10] == 1.0
    assert all(a >= b for a, b in itertools.pairwise(factors[10:]))
    assert factors[-1] < 0.01
    assert {rate_factor(flat, s) for s in range(100)} == {1.0}
    # the published restarts (Noothout et al. 2020): 10,000 steps, then each period twice as long
    warm = Stage("x", 310_000, 1, warmup=0, schedule="restarts", cycles=5)
    for begin, length in ((0, 10_000), (10_000, 20_000), (30_000, 40_000), (70_000, 80_000), (150_000, 160_000)):
        assert rate_factor(warm, begin) == pytest.approx(1, abs=1e-6)
        assert rate_factor(warm, begin + length // 2) == pytest.approx(0.5)
        assert rate_factor(warm, begin + length - 1) < 1e-6
    with pytest.raises(ValueError, match="cosin"):
        rate_factor(Stage("x", 10, 1, warmup=0, schedule="cosin"), 1)


def test_a_model_may_start_from_another(study: Path, tmp_path: Path) -> None:
    fit(study, tmp_path / "a", config(steps=20), report=QUIET)
    text = io.StringIO()
    report = Reporter(Console(file=text))
    few = config("landmarks=[c, a]", "method.steps_rough=1", "method.steps_fine=1")
    fit(study, tmp_path / "b", few, init=tmp_path / "a", report=report)
    assert "2 of 2 landmarks known to it" in text.getvalue()
    assert "tensors kept" in text.getvalue()
    assert load_run(tmp_path / "b").plan.names == ["c", "a"]
    a, b = (load_run(tmp_path / x).weights["method.rough.0.weight"] for x in "ab")
    assert (a - b).abs().max() < 0.01 < (a - load_run_untrained(tmp_path / "a")).abs().max()


def test_a_training_that_made_the_other_model_worse_is_given_up(
    study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By what both err on the held-out cases; the first row of the log says what the other model erred."""
    fit(study, tmp_path / "a", config(steps=60), report=QUIET)
    text = io.StringIO()
    report = Reporter(Console(file=text, width=300))
    worse = config("learning_rate_factor=300", steps=4)
    prepare = tiny.Tiny.prepare
    monkeypatch.setattr(
        tiny.Tiny, "prepare", lambda *a: prepare(*a).model_copy(update={"size_mm": 48.5})
    )  # other cases
    fit(study, tmp_path / "b", worse, init=tmp_path / "a", report=report)
    assert "TRAINING DID NOT HELP" in text.getvalue()
    a, b = (load_run(tmp_path / x).weights for x in "ab")
    assert all(torch.equal(a[name], b[name]) for name in a if name.startswith("method."))
    assert load_run(tmp_path / "b").plan.method == load_run(tmp_path / "a").plan.method
    with open(tmp_path / "b" / "log.csv", newline="") as file:
        first, *_, last = csv.DictReader(file)
    assert first["step"] == "0" and float(first["val_mm"]) < float(last["val_mm"])


def test_a_model_of_which_a_part_was_new_is_kept(study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Given weights beside those of the part that was trained since belong together no more."""
    fit(study, tmp_path / "a", config(steps=60), report=QUIET)
    own = Composed.start_from
    monkeypatch.setattr(Composed, "start_from", lambda *a: {k: v for k, v in own(*a).items() if "fine" not in k})
    text = io.StringIO()
    worse = config("learning_rate_factor=300", steps=4)
    fit(study, tmp_path / "b", worse, init=tmp_path / "a", report=Reporter(Console(file=text, width=300)))
    assert "TRAINING DID NOT HELP" not in text.getvalue()
    a, b = (load_run(tmp_path / x).weights for x in "ab")
    assert not torch.equal(a["method.rough.0.weight"], b["method.rough.0.weight"])


def load_run_untrained(run: Path) -> torch.Tensor:
    loaded = load_run(run)
    torch.manual_seed(loaded.config.seed + 1)
    return tiny.Tiny(tiny.TinyConfig(), loaded.plan.method).rough[0].weight.detach()


def test_a_methods_landmarks_take_what_stands_at_their_names(
    study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fit(study, tmp_path / "a", config(steps=20), report=QUIET)
    source = load_run(tmp_path / "a")
    parts = Composition.of(config())
    composed = parts.build(parts.prepare(start.study_of(read_division(study, names=["c", "a"]), config())))
    start.initialise(composed, source)
    last = composed.method.rough[2]
    assert torch.equal(composed.method.rough[0].weight, source.weights["method.rough.0.weight"])
    assert last.bias.shape == (6,) and not torch.equal(last.bias, source.weights["method.rough.2.bias"][:6])
    monkeypatch.setattr(tiny.Tiny, "per_landmark", lambda self: {"rough.2.*": 0, "fine.2.*": 0})
    start.initialise(composed, source)
    for name in ("bias", "weight"):
        old = source.weights[f"method.rough.2.{name}"].unflatten(0, (3, 3))
        assert torch.equal(getattr(last, name).unflatten(0, (2, 3)), old[[2, 0]])


def test_nothing_in_common_with_the_other_model_is_an_input_error(study: Path, tmp_path: Path) -> None:
    fit(study, tmp_path / "a", config(steps=2), report=QUIET)
    loaded = load_run(tmp_path / "a")
    composed = loaded.build()
    loaded.weights.clear()
    with pytest.raises(InputError, match="none of its 0 tensors"):
        start.initialise(composed, loaded)


def test_without_cases_to_spare_the_card_says_so(tmp_path: Path) -> None:
    few = tiny.write_study(tmp_path / "data", 2)
    fitted = fit(few, tmp_path / "run", config(steps=4), report=QUIET)
    assert not fitted.independent
    assert fitted.validation is not None and len(fitted.validation.cases) == start.COPIES
    assert "No independent validation" in (tmp_path / "run" / "card.md").read_text()
    assert tiny.read_json(tmp_path / "run" / "calibration.json")["pooled"] is None
    said: list[str] = []
    report = Reporter(quiet=True)
    report.say = said.append  # type: ignore[method-assign]
    nothing = fit(few, tmp_path / "none", config("val_fraction=0", steps=4), report=report)
    hardly = [line for line in said if "hardly trained" in line.lower()]
    assert len(hardly) == 1 and hardly[0].startswith("HARDLY TRAINED") and hardly[0].endswith("before you rely on it")
    assert (tmp_path / "none" / "card.md").read_text().lower().count("hardly trained") == 1
    assert nothing.validation is None
    assert "No independent validation" in (tmp_path / "none" / "card.md").read_text()


def test_division_follows_the_manifest(tmp_path: Path, study: Path) -> None:
    split = tiny.write_study(tmp_path / "split", 4, splits=["train", "val", "test", "train"])
    found = read_division(split)
    assert [s.id for s in found.train] == ["case0", "case3"]
    assert [s.id for s in found.val] == ["case1"]
    assert (found.how, found.independent) == ("val split", True)
    held = read_division(study)
    assert (held.how, len(held.train), len(held.val)) == ("held out", 5, 1)
    assert read_division(study).val[0].id == held.val[0].id
    assert {read_division(study, seed=s).val[0].id for s in range(8)} != {held.val[0].id}


def test_certain_errors_are_left_out_and_named(tmp_path: Path) -> None:
    cases = tiny.write_study(tmp_path / "data", 7)
    base = np.random.default_rng(0).uniform(10, 38, (6, 3))
    for k in range(7):
        points = base + np.random.default_rng(k).normal(0, 0.3, base.shape)
        points[2] += 30 * (k == 1)
        write_landmarks(Landmarks(tuple("abcdef"), points), tmp_path / "data" / f"case{k}.mrk.json")
    said = io.StringIO()
    fit(cases, tmp_path / "run", config(steps=2), report=Reporter(Console(file=said, width=500)))
    assert "left out as certainly wrong: case1: c\n" in said.getvalue()
    assert "| left out as certainly wrong | case1: c |" in (tmp_path / "run" / "card.md").read_text()
    fit(cases, tmp_path / "trusting", config("distrust=false", steps=2), report=QUIET)
    assert "certainly wrong" not in (tmp_path / "trusting" / "card.md").read_text()


def test_two_dimensions(tmp_path: Path) -> None:
    flat = tiny.write_study(tmp_path / "data", 5, ndim=2)
    fitted = fit(flat, tmp_path / "run", config(steps=80), report=QUIET)
    assert fitted.validation is not None
    assert fitted.validation.selection_mm() < 6
    assert load_run(tmp_path / "run").plan.method.modality == "image"


def test_folds_predict_every_case_by_a_model_that_did_not_see_it(
    study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("anatomark.training.finish.judged", lambda *_: None)  # no model settles on the mean shape
    fit(study, tmp_path / "run", config(steps=6), folds=3, report=QUIET)
    table = list(csv.DictReader((tmp_path / "run" / "folds" / "out_of_fold.csv").open()))
    assert len(table) == 18
    assert {r["case"] for r in table} == {f"case{i}" for i in range(6)}
    for r in table:
        card = (tmp_path / "run" / "folds" / r["fold"] / "card.md").read_text()
        assert r["case"] not in card
    pooled = tiny.read_json(tmp_path / "run" / "folds" / "out_of_fold.json")
    assert pooled["mean_mm"] == pytest.approx(np.mean([float(r["error_mm"]) for r in table]), abs=1e-3)
    card = (tmp_path / "run" / "card.md").read_text()
    assert f"| all | 18 | {pooled['mean_mm']:.2f} |" in card
    radius = tiny.read_json(tmp_path / "run" / "calibration.json")
    assert (radius["source"], radius["pooled"]["n"]) == ("out-of-fold", 18)
    errors = sorted(float(r["error_mm"]) for r in table)
    assert radius["pooled"]["radius90_mm"] == pytest.approx(errors[17], abs=1e-3)  # ceil(0.9 * 19) = 18th of 18
    assert not (tmp_path / "run" / "folds" / "cache").exists()


def test_folds_share_a_time_budget(study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "_time_step", lambda state, seconds: 3.0)
    fit(study, tmp_path / "run", config(minutes=2), folds=2, report=QUIET)
    steps = [read_config(tmp_path / "run" / p / "config.yaml").stage_steps for p in ("folds/1", "folds/2", ".")]
    assert steps[0] == steps[1] == steps[2]
    assert steps[0]["rough"] <= 9  # two thirds of a third of the 40 steps that fit


def test_fold_sizes() -> None:
    parts = split_folds(10, 4, 0)
    assert sorted(i for p in parts for i in p) == list(range(10))
    assert sorted(len(p) for p in parts) == [2, 2, 3, 3]
    for folds, word in ((1, "2 or more"), (11, "only 10")):
        with pytest.raises(InputError, match=word):
            split_folds(10, folds, 0)


def test_radii_need_enough_independent_errors() -> None:
    truth = tuple(Landmarks(("a",), np.zeros((1, 3))) for _ in range(30))
    rng = np.random.default_rng(0)
    found = tuple(Landmarks(("a",), rng.normal(size=(1, 3)), covariance=np.eye(3)[None] * 4) for _ in range(30))
    few = Residuals(("x",) * 8, found[:8], truth[:8])
    assert calibrated(few.errors, few.predictions, ["a"])["pooled"]["radius90_mm"] is None
    learned = calibrated(Residuals(tuple(map(str, range(30))), found, truth).errors, found, ["a"])
    many = learned["pooled"]
    errors = np.sort([np.linalg.norm(f.points) for f in found])
    assert many["radius90_mm"] == pytest.approx(errors[27], abs=1e-4)
    assert many["scale90"] == pytest.approx(errors[27] / 2, abs=1e-4)
    assert learned["landmarks"]["a"]["radius90_mm"] == pytest.approx(many["radius90_mm"], rel=0.1)
    json.dumps(learned)


def test_a_missed_landmark_is_no_way_to_a_better_model() -> None:
    truth = Landmarks(("a", "b"), np.array([[0.0, 0, 0], [20, 0, 0]]))
    all_found = Residuals(("x",), (truth.with_points(truth.points + [3.0, 0, 0]),), (truth,))
    one = Residuals(("x",), (Landmarks(("a", "b"), np.array([[1.0, 0, 0], [np.nan] * 3])),), (truth,))
    assert all_found.selection_mm() == pytest.approx(3.0)
    assert one.selection_mm() == pytest.approx((1 + 10) / 2)
    assert one.missed == 1


def test_evidence_survives_a_checkpoint() -> None:
    found = Landmarks(("a", "b"), np.array([[1.0, 2, 3], [np.nan] * 3]), score=np.array([0.5, 0.1]))
    truth = Landmarks(("a", "b"), np.zeros((2, 3)))
    evidence = Residuals(("x",), (found,), (truth,)).evidence("augmented copies")
    again = from_plain(to_plain(evidence))
    np.testing.assert_array_equal(again.predictions["x"].points, found.points)
    np.testing.assert_array_equal(again.predictions["x"].score, found.score)
    assert again.predictions["x"].status == found.status
    np.testing.assert_array_equal(again.truth["x"].points, truth.points)
    assert again.source == "augmented copies"
    assert from_plain(to_plain(Evidence())) == Evidence()


@pytest.mark.parametrize("folds", [0, 2])
@pytest.mark.parametrize("where", ["new/deep/run", "empty"])
@pytest.mark.parametrize("what", ["image", "config", "interrupt"])
def test_a_run_that_fails_before_it_trains_leaves_nothing(
    study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folds: int, where: str, what: str
) -> None:
    (tmp_path / "empty").mkdir()
    asked: list[bool] = []

    def fail(*_: Any) -> None:
        asked.append((tmp_path / where / "request.yaml").exists())
        raise KeyboardInterrupt if what == "interrupt" else InputError("this fails")

    if what == "config":
        monkeypatch.setattr("anatomark.training.state.write_config", fail)
    else:
        monkeypatch.setattr(tiny.Tiny, "working_images", fail)
    with pytest.raises(KeyboardInterrupt if what == "interrupt" else InputError):
        fit(study, tmp_path / where, config(steps=2), folds=folds, report=QUIET)
    assert asked == [True]
    assert [str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*")] == ["empty"]


def test_what_was_begun_stays_where_it_fails_later(
    study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("anatomark.training.fit.finish", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            fit(study, tmp_path / "run", config(steps=2), report=QUIET)
    assert {"config.yaml", "request.yaml", "last.ckpt", "cache"} <= {p.name for p in (tmp_path / "run").iterdir()}
    fit(study, tmp_path / "run", resume=True, report=QUIET)
    assert (tmp_path / "run" / "weights.safetensors").exists()


def test_fit_takes_settings_by_name_and_gives_the_model(study: Path, tmp_path: Path) -> None:
    settings = {"method": "tiny", "preset": "small", "steps": 3, "seed": 5, "landmarks": ["c", "a"]}
    fitted = anatomark.fit(
        str(study), tmp_path / "run", **settings, set=["method.width=7", "refine.enabled=false"], report=QUIET
    )
    there = read_config(fitted.run / "config.yaml")
    assert (there.method.name, there.method.preset, there.seed, there.steps) == ("tiny", "small", 5, 3)
    assert (there.method.settings["side"], there.method.settings["width"]) == (4, 7)
    image, _ = tiny.blobs(50)
    prediction = fitted.model.predict(image)
    assert isinstance(prediction, anatomark.Prediction) and prediction.landmarks.names == ("c", "a")
    again = [fitted.predict(study.parent / "case0.nii.gz"), anatomark.load(fitted.run).predict(tiny.blobs(0)[0])]
    np.testing.assert_array_equal(*(p.landmarks.points for p in again))
    few = make_config(method="tiny", steps=2)
    more = fit(study, tmp_path / "more", few, preset="small", report=QUIET)  # a config, and some by name
    assert read_config(more.run / "config.yaml").method.settings["side"] == 4
    for wrong, word in (({"sede": 3}, "did you mean 'seed'"), ({"set": ["method.sid=3"]}, "'side'")):
        with pytest.raises(InputError, match=word):
            fit(study, tmp_path / "none", method="tiny", report=QUIET, **wrong)


def test_progress_lines_are_plain_and_spaced() -> None:
    text = io.StringIO()
    report = Reporter(Console(file=text), every_s=0.0)
    with report.bar("stage", 10) as bar:
        bar.update(5, "loss 1")
    assert text.getvalue().startswith("stage  5/10  loss 1  0:00 left")
    slow = Reporter(Console(file=text), every_s=100.0)
    with slow.bar("other", 10) as bar:
        bar.update(5)
    assert "other" not in text.getvalue()
    assert (clock(75), clock(3700)) == ("1:15", "1:01:40")


def test_a_diverged_training_stops(study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiny.Tiny, "loss", lambda self, batch, stage: {"loss": self.rough(batch["x"]).sum() * np.nan})
    with pytest.raises(RuntimeError, match="diverged"):
        fit(study, tmp_path / "run", config(steps=5), report=QUIET)


def test_a_terminal_gets_a_live_bar() -> None:
    text = io.StringIO()
    report = Reporter(Console(file=text, force_terminal=True, width=100))
    with report.bar("stage", 10, 2) as bar:
        bar.update(6, "loss 0.5  val 1.2 mm")
    assert "6/10" in text.getvalue()
    assert "loss 0.5  val 1.2 mm" in text.getvalue()
    assert "left" in text.getvalue()


def test_steps_of_a_stage_that_does_not_exist_are_refused(study: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"stage_steps.rogh`: tiny has no such stage .did you mean 'rough'"):
        fit(study, tmp_path / "run", config("stage_steps={rogh: 6}"), report=QUIET)
