"""Which candidates are tried, how long, and which of them is taken."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import tiny
from anatomark.cases.case import Case
from anatomark.cases.division import Division, divided
from anatomark.core.grid import Grid
from anatomark.core.image import Image
from anatomark.core.landmarks import Landmarks
from anatomark.core.shape import Pose, random_rotation
from anatomark.methods.base import Task
from anatomark.model.config import RunConfig, read_config
from anatomark.progress import Reporter
from anatomark.training import trials
from anatomark.training.fit import fit
from anatomark.training.trials import Candidate, Tried, _best, candidates, decide, lie_alike, neighbours_confused

QUIET = Reporter(quiet=True)
tiny.register()


def division(shapes: np.ndarray) -> Division:
    """Cases with these landmarks (M, N, D), in images about the world's origin; a fifth of them is held out."""
    n, d = shapes.shape[1:]
    names = tuple(f"p{k}" for k in range(n))
    image = Image(np.zeros((1, *(40,) * d)), Grid.centred((40,) * d, np.eye(d)[:, ::-1] * 4, np.zeros(d)))
    cases = [Case(f"case{i}", given=Landmarks(names, s), held=image) for i, s in enumerate(shapes)]
    return divided(cases, [], names, val_fraction=0.2, seed=0)


def posed(count: int, ndim: int, degrees: float, shift: float) -> np.ndarray:
    """One shape of radius about 20 mm in random poses."""
    rng = np.random.default_rng(2)
    mean = rng.normal(0, 12, (8, ndim))
    return np.stack(
        [Pose(random_rotation(rng, ndim, degrees), rng.normal(0, shift, ndim)).apply(mean) for _ in range(count)]
    )


def chains(count: int) -> np.ndarray:
    """Links 6 mm long in chains that bend widely."""
    rng = np.random.default_rng(3)
    turns = np.cumsum(rng.normal(0, 0.25, (count, 24)), axis=1)
    return np.asarray(np.cumsum(6 * np.stack([np.sin(turns), np.cos(turns)], -1), axis=1) - [0, 70.0])


def test_neighbours_are_confused_in_bent_chains_alone() -> None:
    assert neighbours_confused(division(chains(30)))
    assert not neighbours_confused(division(posed(30, 2, 20, 3) + np.random.default_rng(0).normal(0, 1, (30, 8, 2))))
    assert not neighbours_confused(division(chains(6)))  # too few to tell


@pytest.mark.parametrize(("degrees", "shift", "alike"), [(5, 1, True), (60, 1, False), (5, 15, False)])
@pytest.mark.parametrize("ndim", [2, 3])
def test_images_lie_alike_where_neither_turned_nor_shifted(
    ndim: int, degrees: float, shift: float, alike: bool
) -> None:
    assert lie_alike(division(posed(20, ndim, degrees, shift))) is alike


def task(ndim: int) -> Task:
    return Task(ndim, 8, 20, 5.0, 20.0, 1.0)


def test_the_tree_is_tried_first_where_neighbours_are_confused() -> None:
    favourite = {"method": {"name": "pin"}, "align": {"enabled": False}}
    labels = [c.label for c in candidates(task(2), division(chains(30)), favourite, free=True)]
    assert labels == ["heatmap (tree)", "pin", "global_to_local"]
    labels = [c.label for c in candidates(task(2), division(posed(30, 2, 5, 1)), favourite, free=True)]
    assert labels == ["pin", "global_to_local", "heatmap"]


def test_alignment_is_left_out_where_images_lie_alike_and_the_user_left_it_open() -> None:
    favourite = {"method": {"name": "t2dl"}, "align": {"enabled": True}}
    alike, strewn = division(posed(20, 3, 5, 1)), division(posed(20, 3, 90, 9))
    assert [c.label for c in candidates(task(3), alike, favourite, free=True)] == [
        "t2dl, aligned", "pin", "global_to_local", "heatmap",
    ]  # fmt: skip
    for of, free in ((strewn, True), (alike, False)):
        assert all(c.label.endswith("aligned") for c in candidates(task(3), of, favourite, free=free))


def tried(errors: dict[str, float], monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, float]]:
    """Trials that give these errors; what is tried for how long is written down."""
    seen: list[tuple[str, float]] = []

    def fake(candidate: Candidate, *args: object) -> Tried:
        seen.append((candidate.label, float(args[3])))  # type: ignore[arg-type]
        return Tried(candidate, float(args[3]), 100, errors[candidate.label])  # type: ignore[arg-type]

    monkeypatch.setattr(trials, "_tried", fake)
    return seen


@pytest.mark.parametrize(
    ("errors", "chosen"),
    [
        ({"a": 2.0, "b": 1.9, "c": 3.0}, "a"),  # hardly better: the favourite stays
        ({"a": 2.0, "b": 1.5, "c": 3.0}, "b"),
        ({"a": 5.0, "b": 1.6, "c": 1.5}, "c"),
    ],
)
def test_the_favourite_stays_unless_another_errs_clearly_less(
    errors: dict[str, float], chosen: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = tried(errors, monkeypatch)
    names = [Candidate(k, {"method": {"name": k}}) for k in errors]
    got, lines = decide(names, RunConfig(), division(chains(20)), tmp_path, 60.0, QUIET)
    assert got.label == chosen
    again = ["a", min("bc", key=lambda k: errors[k])]  # the favourite always
    assert seen == [*((k, pytest.approx(15 / 7)) for k in errors), *((k, pytest.approx(30 / 7)) for k in again)]
    assert len(lines) == 5 and all("mm" in line for line in lines)


def once(label: str, minutes: float, error: float, slow: int = 0, placed: float = np.inf) -> Tried:
    """A trial of 100 steps a minute, where half of the time goes into getting ready."""
    return Tried(Candidate(label, {}, slow), minutes, round(50 * minutes), error, placed, 0.6)


def test_what_still_falls_is_foreseen_to_fall_further_by_less_each_time() -> None:
    half, whole = once("a", 1, 2.5), once("a", 2, 2.0)
    assert whole.foreseen_mm(half, 2) == 2.0
    assert whole.foreseen_mm(half, 4) == pytest.approx(2.0 * 0.8**0.6)
    assert whole.foreseen_mm(half, 8) == pytest.approx(2.0 * 0.8 ** (0.6 + 0.36))
    assert whole.foreseen_mm(once("a", 1, 90.0), 4) == pytest.approx(2.0 * 0.7**0.6)  # it had only begun to learn
    assert whole.foreseen_mm(None, 8) == once("a", 2, 2.0).foreseen_mm(once("a", 1, 1.0), 8) == 2.0
    first, second = [once("a", 1, 4.0), once("b", 1, 2.52)], [once("a", 2, 3.0), once("b", 2, 2.5)]
    assert _best(second, {t.candidate.label: t for t in first}, 60).label == "a"
    assert _best(second, {}, 60).label == "b"


@pytest.mark.parametrize(
    ("minutes", "placed", "error", "chosen"),
    [
        (5, 32.0, 33.0, "slow"),  # the other is no better than a mean shape
        (10, 32.0, 20.0, "fast"),  # it is
        (3, 32.0, 33.0, "fast"),  # no time for the slow one
        (10, np.inf, np.inf, "slow"),
    ],
)
def test_a_slow_favourite_is_not_judged_before_its_time(
    minutes: float, placed: float, error: float, chosen: str
) -> None:
    results = [once("slow", 1, 190.0, slow=400), once("fast", 1, error, placed=placed)]
    assert _best(results, {}, minutes).label == chosen


def test_short_times_try_fewer_and_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [Candidate(k, {"method": {"name": k}}) for k in "abc"]
    seen = tried(dict.fromkeys("abc", 1.0), monkeypatch)
    assert decide(names, RunConfig(), division(chains(20)), tmp_path, 4.0, QUIET)[0].label == "a"
    assert seen == [("a", 0.5), ("b", 0.5)]
    assert decide(names, RunConfig(), division(chains(20)), tmp_path, 1.0, QUIET) == (names[0], [])
    assert len(seen) == 2


def test_a_fit_tries_and_says_what(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cases = tiny.write_study(tmp_path / "data", 12, ndim=2)
    own = [Candidate(n, {"method": {"name": "tiny", "preset": "recommended"}}, slow=1) for n in ("first", "second")]
    monkeypatch.setattr("anatomark.training.auto.candidates", lambda *a, **k: own)
    monkeypatch.setattr("anatomark.training.auto.REFINED_FROM", {2: 0.0, 3: 0.0})
    monkeypatch.setattr(trials, "LEAST_MINUTES", 0.002)
    monkeypatch.setattr(trials, "PATIENCE", 100.0)  # however busy this machine
    said: list[str] = []

    class Kept(Reporter):
        def say(self, text: str) -> None:
            said.append(text)

    fit(cases, tmp_path / "run", minutes=0.1, report=Kept(quiet=True))
    assert sum("held-out error" in line and "steps" in line for line in said) == 4  # two rounds of two
    assert not (tmp_path / "run" / "trials").exists() and not (tmp_path / "run" / "cache").exists()
    config = read_config(tmp_path / "run" / "config.yaml")
    assert config.method.name == "tiny"
    assert config.refine.enabled is False  # a slow method needs the time itself
    assert sum(line.startswith("tried for") for line in config.reasons) == 4


def test_a_hopeless_time_is_said_before_the_training(tmp_path: Path) -> None:
    cases = tiny.write_study(tmp_path / "data", 4, ndim=2, splits=["train"] * 3 + ["val"])
    said: list[str] = []

    class Kept(Reporter):
        def say(self, text: str) -> None:
            said.append(text)

    fit(cases, tmp_path / "run", method="tiny", minutes=0.0005, report=Kept(quiet=True))
    (line,) = (one for one in said if "can teach hardly anything" in one)
    needed = int(line.split("give `minutes` ")[1].split(" or more")[0])
    assert 1 <= needed < 60  # a small network's 500 steps, on whatever machine
