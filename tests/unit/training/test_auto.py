"""The method auto: every rule on made-up facts, and a run that names no method."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import tiny
from anatomark.cases.division import read_division
from anatomark.cases.look.fingerprint import fingerprint
from anatomark.cases.manifest import read_manifest
from anatomark.cli import app as cli
from anatomark.errors import InputError
from anatomark.methods.base import Task
from anatomark.model.config import completed, make_config, read_config
from anatomark.progress import Reporter
from anatomark.training import auto
from anatomark.training.auto import Choice, applied, choose, task_of_division, task_of_fingerprint, usual_minutes
from anatomark.training.fit import fit
from anatomark.training.plan import plan

tiny.register()
QUIET = Reporter(quiet=True)
SKULLS = Task(3, 45, 16, 177.0, 11.2, 0.141)
HEADS = Task(2, 19, 150, 13.0, 73.0, 0.1, observed=True)
BRAINS = Task(3, 32, 5, 1.6, 65.5, 1.0)


def values(choice: Choice) -> dict[str, Any]:
    return {key: value for key, value, _ in choice.rows}


@pytest.mark.parametrize(
    ("task", "minutes", "method", "refined"),
    [
        (HEADS, 60, "global_to_local", True),
        (HEADS, 10, "global_to_local", True),
        (HEADS, 3, "global_to_local", True),
        (HEADS, 1.9, "pin", False),
        (SKULLS, 60, "t2dl", True),
        (SKULLS, 3, "t2dl", False),
        (replace(SKULLS, cases=2), 60, "t2dl", True),
        (BRAINS, 60, "t2dl", True),
        (replace(SKULLS, landmarks=2, cases=4), 5, "pin", False),
        (replace(BRAINS, landmarks=100), 60, "t2dl", True),
        (replace(BRAINS, landmarks=101), 60, "t2dl", False),
        (replace(HEADS, landmarks=1232), 5, "t2dl", False),
    ],
)
def test_method_and_refiner_follow_from_data_and_time(task: Task, minutes: float, method: str, refined: bool) -> None:
    found = values(choose(task, minutes))
    assert (found["method.name"], found["refine.enabled"]) == (method, refined)
    assert found["align.enabled"] == (method == "t2dl" and task.ndim == 3)
    assert "minutes" not in found


def test_steps_count_as_the_minutes_that_they_took() -> None:
    assert values(choose(HEADS, None, 480))["method.name"] == "pin"
    assert values(choose(HEADS, None, 500))["method.name"] == "global_to_local"
    assert values(choose(HEADS, None, 480))["refine.enabled"] is False


def test_what_the_user_said_of_refiner_and_alignment_counts() -> None:
    assert values(choose(HEADS, 60, refine=False))["method.name"] == "pin"
    assert values(choose(HEADS, 5, refine=True))["method.name"] == "global_to_local"
    assert values(choose(replace(HEADS, turned_deg=61.0), 60))["method.name"] == "pin"
    assert values(choose(SKULLS, 60, align=False))["method.name"] == "pin"
    assert values(choose(SKULLS, 60, align=True))["method.name"] == "t2dl"


def test_folds_share_the_minutes() -> None:
    found = choose(HEADS, 8, models=5)
    assert values(found)["refine.enabled"] is False and values(found)["method.name"] == "pin"
    assert "1.6 minutes for each model" in found.reasons[0]


def test_a_single_landmark_has_no_radius() -> None:
    found = values(choose(Task(2, 1, 20, 0.0, 0.0, 0.1), 60))
    assert "refine.levels" not in found and found["refine.enabled"]


def test_the_refiner_fits_voxels_and_number_of_cases() -> None:
    skulls, heads, brains = (values(choose(f, 60)) for f in (SKULLS, HEADS, BRAINS))
    assert (skulls["refine.levels"], heads["refine.levels"], brains["refine.levels"]) == (1, 2, 1)
    assert (skulls["refine.width"], brains["refine.width"]) == (24, 16)
    assert "refine.width" not in heads and "refine.batch" not in heads
    assert skulls["refine.batch"] == brains["refine.batch"] == 6
    assert values(choose(replace(SKULLS, voxel_mm=0.01), 60))["refine.levels"] == 2
    assert values(choose(replace(HEADS, voxel_mm=0.5), 60))["refine.levels"] == 1
    alone = values(choose(HEADS, 60, refine=False))
    assert "refine.levels" not in alone
    assert values(choose(HEADS, 5, refine=True))["refine.levels"] == 2  # the user wants it, whatever the time


def test_observers_are_combined_where_that_is_sound() -> None:
    assert values(choose(HEADS, 60))["observers"] == "combined"
    for other in (replace(HEADS, observed=False), replace(HEADS, turned_deg=40), replace(HEADS, cases=5)):
        assert "observers" not in values(choose(other, 60))


def test_without_a_budget_a_usual_time_is_chosen() -> None:
    assert [usual_minutes(n, 3)[0] for n in (1, 4, 5, 99, 100)] == [20, 20, 60, 60, 90]
    assert values(choose(HEADS, None))["minutes"] == 90


@pytest.mark.parametrize("task", [HEADS, SKULLS, BRAINS, replace(BRAINS, landmarks=500)])
@pytest.mark.parametrize("minutes", [3.0, 60.0])
def test_every_choice_makes_a_complete_config_with_its_reasons(task: Task, minutes: float) -> None:
    choice = choose(task, minutes)
    config = applied(make_config(minutes=minutes), choice)
    assert config == completed(config) and config.method.name != "auto" and config.method.settings
    assert config.reasons == choice.reasons and all(": " in line for line in config.reasons)
    assert config.minutes == minutes


@pytest.mark.parametrize(
    ("task", "said", "aligned"),
    [
        (SKULLS, [], True),
        (replace(SKULLS, turned_deg=60.0), [], None),
        (replace(SKULLS, landmarks=3), [], None),
        (replace(HEADS, turned_deg=170.0), [], None),
        (SKULLS, ["align.enabled=false"], False),
        (SKULLS, ["method.preset=paper"], None),
    ],
)
def test_what_lies_in_any_pose_is_aligned(
    task: Task, said: list[str], aligned: bool | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    division = read_division(tiny.write_study(tmp_path, 6))
    monkeypatch.setattr(auto, "task_of_division", lambda _: task)
    config = auto.aligned_in_any_pose(make_config(method="pin", assignments=said), division)
    assert config.align.enabled is aligned
    assert bool(config.reasons) == bool(aligned)


def test_what_the_user_set_stays(tmp_path: Path) -> None:
    division = read_division(tiny.write_study(tmp_path, 6))
    config = auto.settled(make_config(minutes=30, assignments=["refine.enabled=false", "align.enabled=true"]), division)
    assert (config.method.name, config.refine.enabled, config.align.enabled, config.minutes) == ("pin", False, True, 30)
    assert not any(line.startswith(("refine", "align", "minutes")) for line in config.reasons)
    wide = auto.settled(make_config(minutes=30, assignments=["refine.width=8"]), division)
    assert wide.refine.width == 8 and wide.refine.enabled


@pytest.mark.parametrize("ndim", [2, 3])
def test_plan_and_fit_see_the_same(tmp_path: Path, ndim: int) -> None:
    study = tiny.write_study(tmp_path, 6, ndim)
    one = task_of_fingerprint(fingerprint(read_manifest(study)))
    other = task_of_division(read_division(study))
    assert (one.ndim, one.landmarks, one.cases, one.observed) == (ndim, 3, 6, False)
    assert (other.ndim, other.landmarks, other.cases, other.observed) == (ndim, 3, 6, False)
    assert other.voxel_mm == pytest.approx(2.0) == one.voxel_mm
    assert other.radius_mm == pytest.approx(one.radius_mm, rel=0.05)
    planned = plan(study, minutes=30)
    config = planned.config
    assert auto.settled(make_config(minutes=30), read_division(study)).method == config.method
    assert config.minutes == 30 and config.reasons
    assert [row["key"] for row in planned.facts["suggestions"]][:2] == ["method.name", "align.enabled"]


def test_a_preset_or_settings_need_no_name_and_auto_takes_none() -> None:
    assert make_config(preset="paper").method.name == "pin"
    assert make_config(assignments=["method.alpha=0.3"]).method.name == "pin"
    assert make_config().method.name == make_config(method="auto").method.name == "auto"
    with pytest.raises(InputError, match="auto chooses preset and settings itself"):
        make_config(method="auto", preset="paper")


# ---------------------------------------------------------------------- runs


@pytest.fixture
def choosing_tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = (("method.name", "tiny", "it is small"), ("refine.enabled", False, "it is a test"))
    monkeypatch.setattr(auto, "choose", lambda *_, **__: Choice(rows))


def test_a_run_without_a_method_names_it_and_resumes(choosing_tiny: None, tmp_path: Path) -> None:
    study = tiny.write_study(tmp_path / "data", 3)
    said: list[str] = []

    class Heard(Reporter):
        def say(self, text: str) -> None:
            said.append(text)

    run = fit(study, tmp_path / "run", make_config(steps=4, assignments=["seed=3"]), report=Heard(quiet=True)).run
    config = read_config(run / "config.yaml")
    assert config.method.name == "tiny" and config.method.settings["side"] == 8
    assert "method.name = tiny: it is small" in said and config.reasons == said[: len(config.reasons)]
    assert "- refine.enabled = false: it is a test" in (run / "card.md").read_text()
    fit(study, tmp_path / "again", make_config(run / "config.yaml"), report=QUIET)
    assert (tmp_path / "again" / "weights.safetensors").read_bytes() == (run / "weights.safetensors").read_bytes()
    (run / "weights.safetensors").unlink()
    fit(study, run, make_config(steps=4, assignments=["seed=3"]), resume=True, report=QUIET)
    assert read_config(run / "config.yaml") == config
    (run / "weights.safetensors").unlink()
    with pytest.raises(InputError, match=r"`resume` goes on with the settings there \(seed: 3\)"):
        fit(study, run, make_config(steps=4, assignments=["seed=5"]), resume=True, report=QUIET)


def test_a_given_model_says_the_method(tmp_path: Path) -> None:
    study = tiny.write_study(tmp_path / "data", 3)
    config = make_config(method="tiny", steps=4, assignments=["method.side=6"])
    first = fit(study, tmp_path / "first", config, report=QUIET).run
    second = fit(study, tmp_path / "second", make_config(steps=4), init=first, report=QUIET).run
    there = read_config(second / "config.yaml")
    assert (there.method.name, there.method.settings["side"], there.refine.enabled) == ("tiny", 6, False)
    assert there.learning_rate_factor == pytest.approx(0.2) and not there.reasons


@pytest.mark.slow
def test_the_command_without_a_method_trains_and_names_its_choice(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study, run = tiny.write_study(tmp_path / "data", 5, 2, size=48), tmp_path / "run"
    with pytest.raises(SystemExit) as exit:
        cli.main(["fit", str(study), "--out", str(run), "--steps", "6"])
    assert not exit.value.code
    assert "method.name = pin: 3 landmarks in 2D" in " ".join(capsys.readouterr().err.split())
    config = read_config(run / "config.yaml")
    assert config.method.name == "pin" and config.refine.enabled is False and config.steps == 6
    assert "method.name = pin" in (run / "card.md").read_text()
