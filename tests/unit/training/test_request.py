"""What was asked of a run stands in its folder, and resuming compares two requests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from anatomark.errors import InputError
from anatomark.model.config import RunConfig, completed, make_config, write_config
from anatomark.training.request import REQUEST, begun, resumed, write_request


def asked(*assignments: str, **given: Any) -> RunConfig:
    return make_config(None, assignments, **given)


def begin(run: Path, request: RunConfig, settled: RunConfig | None = None, part: str = ".") -> RunConfig:
    """A run folder as it stands when training has begun; ``settled``: what became of the request, if not just that."""
    (run / part).mkdir(parents=True, exist_ok=True)
    write_request(run, request)
    write_config(run / part / "config.yaml", settled or completed(request))
    return request


def plain(run: Path) -> Any:
    return yaml.safe_load((run / REQUEST).read_text())


@pytest.mark.parametrize(
    ("request_", "content"),
    [
        (asked(), {}),
        (asked(method="pin", steps=5), {"method": {"name": "pin"}, "steps": 5}),
        (asked("seed=0", device="cpu", minutes=None), {"seed": 0, "device": "cpu"}),  # asked for, though it is usual
        (
            asked("method.steps_context=3", "refine.enabled=true"),
            {"method": {"name": "pin", "settings": {"steps_context": 3}}, "refine": {"enabled": True}},
        ),
    ],
)
def test_the_file_holds_what_the_user_set_and_nothing_else(tmp_path: Path, request_: RunConfig, content: Any) -> None:
    write_request(tmp_path, request_)
    assert plain(tmp_path) == content


FIRST = ("seed=1", "refine.width=8", "refine.scales=[1, 2]", "landmarks=[a, b]", "method.steps_context=3")


@pytest.mark.parametrize(
    "again",
    [
        asked(*FIRST, method="pin", steps=5),
        asked(),
        asked("seed=1"),
        asked("refine.width=8", "method.steps_context=3"),
        asked(*FIRST, method="pin", preset="recommended", steps=5, threads=3, workers=2, device="cpu"),
        asked("cache_mb=10", "cache=elsewhere", "minutes=7"),
        asked(
            "val_fraction=0.2", "refine.px=null", "align.enabled=null", "precision=auto"
        ),  # usual there, and not asked for otherwise
    ],
)
def test_the_same_or_less_or_another_machine_goes_on(tmp_path: Path, again: RunConfig) -> None:
    first = asked(*FIRST, method="pin", steps=5, threads=1)
    settled = completed(first)
    begin(tmp_path, first, settled.model_copy(update={"align": settled.align.model_copy(update={"enabled": True})}))
    got = resumed(tmp_path, again, True)
    machine = {"threads", "workers", "device", "cache_mb"}
    assert got.model_dump(exclude=machine) == first.model_dump(exclude=machine)
    assert got.model_dump(include=machine) == again.model_dump(include=machine)


@pytest.mark.parametrize(
    ("again", "there", "now"),
    [
        (asked("seed=0"), "seed: 1", "0"),
        (asked("seed=2"), "seed: 1", "2"),
        (asked(steps=6), "steps: 5", "6"),
        (asked(method="heatmap"), "method.name: pin", "heatmap"),
        (asked(method="auto"), "method.name: pin", "auto"),
        (asked(preset="paper"), "method.preset: recommended", "paper"),
        (asked("method.steps_context=4"), "method.settings.steps_context: 3", "4"),
        (asked("method.context_px=20"), "method.settings.context_px: 32", "20"),  # that the preset settled
        (asked("refine.width=32"), "refine.width: 8", "32"),
        (asked("refine.scales=[1]"), "refine.scales: [1.0, 2.0]", "[1.0]"),
        (asked("landmarks=null"), "landmarks: ['a', 'b']", "None"),
        (asked("refine.enabled=false"), "refine.enabled: True", "False"),  # that the method's author settled
        (asked("align.enabled=false"), "align.enabled: True", "False"),  # that the cases settled
        (asked("license=CC0"), "license: not stated", "CC0"),
    ],
)
def test_what_contradicts_is_refused_in_one_line(tmp_path: Path, again: RunConfig, there: str, now: str) -> None:
    first = asked(*FIRST, method="pin", steps=5)
    settled = completed(first).model_dump()
    settled["refine"]["enabled"] = settled["align"]["enabled"] = True
    begin(tmp_path, first, RunConfig(**settled))
    with pytest.raises(InputError) as error:
        resumed(tmp_path, again, True)
    line = str(error.value)
    assert line.startswith(f"{tmp_path / REQUEST}: ") and "\n" not in line
    assert f"({there}), but {now} was asked for" in line


def test_a_method_that_auto_chose_may_be_named_and_no_other(tmp_path: Path) -> None:
    begin(tmp_path, asked(minutes=30), completed(asked("minutes=30", "observers=combined", method="t2dl")))
    assert resumed(tmp_path, asked(method="t2dl"), True).method.name == "auto"
    assert resumed(tmp_path, asked(method="auto"), True).minutes == 30
    with pytest.raises(InputError, match=r"method.name: t2dl\), but pin was asked for"):
        resumed(tmp_path, asked(method="pin"), True)
    with pytest.raises(InputError, match=r"observers: combined\), but named was asked for"):
        resumed(tmp_path, asked("observers=named"), True)


def test_a_run_of_before_is_compared_with_its_config(tmp_path: Path) -> None:
    begin(tmp_path, asked("seed=1", method="pin", steps=5))
    (tmp_path / REQUEST).unlink()
    for again in (asked(), asked(method="pin", steps=5), asked("seed=1", "refine.width=32", threads=2)):
        assert resumed(tmp_path, again, True).seed == 1
    for again, there in ((asked("seed=0"), "seed: 1"), (asked(method="t2dl"), "method.name: pin")):
        with pytest.raises(InputError) as error:
            resumed(tmp_path, again, True)
        assert str(error.value).startswith(f"{tmp_path / 'config.yaml'}: ") and f"({there})" in str(error.value)


def test_folds_that_were_begun_are_a_run_that_was_begun(tmp_path: Path) -> None:
    first = begin(tmp_path, asked("seed=1"), completed(asked("seed=1", method="t2dl")), part="folds/1")
    assert begun(tmp_path) == tmp_path / "folds" / "1" / "config.yaml"
    with pytest.raises(InputError, match="add `resume`"):
        resumed(tmp_path, first, False)
    for again in (asked(), asked("seed=1", method="t2dl")):
        assert resumed(tmp_path, again, True) == first
    with pytest.raises(InputError, match=r"seed: 1\), but 0 was asked for"):
        resumed(tmp_path, asked("seed=0"), True)
    (tmp_path / REQUEST).unlink()
    with pytest.raises(InputError, match="an earlier version began its folds"):
        resumed(tmp_path, first, True)


def test_where_nothing_was_begun_a_run_may_begin(tmp_path: Path) -> None:
    one = asked("seed=1")
    assert resumed(tmp_path / "new", one, True) is one
    write_request(tmp_path, asked("seed=2"))  # killed while it read the images
    (tmp_path / "cache").mkdir()
    assert resumed(tmp_path, one, False) is one and begun(tmp_path) is None
    (tmp_path / "notes.txt").touch()
    with pytest.raises(InputError, match="is no run folder; choose another `out`"):
        resumed(tmp_path, one, True)
    with pytest.raises(InputError, match="is no run folder"):
        resumed(tmp_path / "notes.txt", one, False)
