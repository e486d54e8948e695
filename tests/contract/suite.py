"""What holds for every method, alone and between an alignment and a refiner: plain functions, one for each promise.

``check_*`` takes a :class:`Subject` and raises AssertionError where the promise is broken. ``test_contract.py`` runs
them over the methods of this package, or over one that ``--method module:Class`` names.
"""

from __future__ import annotations

import copy
import json
import pickle
import random
from collections.abc import Sequence
from dataclasses import replace
from fnmatch import fnmatch

import numpy as np
import pytest
import torch
from safetensors.torch import load, save

import phantom
from anatomark.cases.case import Case
from anatomark.core.landmarks import Landmarks, Status
from anatomark.core.shape import Pose
from anatomark.errors import InputError
from anatomark.methods.base import Facts, Method, MethodConfig, PerLandmark, Stage
from anatomark.model.compose import Composed, Composition, Plan
from anatomark.model.config import completed
from anatomark.model.start import moved_weights
from anatomark.training.examples import weightless
from anatomark.training.optimise import make_optimizer, set_modes
from contract.subject import TOLERANCE_MM, Subject, alone, assert_same, no_files, plain_plan

WORLD = "an image moved in the world, and its landmarks did not move with it"

# ---------------------------------------------------------------------- settings, facts, stages


def check_settings(s: Subject) -> None:
    """``Config`` and ``Facts`` are pydantic, refuse what they do not know, and survive JSON; so does the preset."""
    cls, settings = s.parts.method, s.parts.settings
    assert issubclass(cls.Config, MethodConfig) and issubclass(cls.Facts, Facts)
    assert s.preset in (cls.presets or {"recommended": {}})
    for given in (settings, cls.Config(**cls.presets.get(s.preset, {}))):
        assert cls.Config(**json.loads(given.model_dump_json())) == given
    with pytest.raises(ValueError, match="no_such_setting"):
        cls.Config(no_such_setting=1)
    whole = completed(s.config)
    assert type(whole)(**json.loads(whole.model_dump_json())) == whole


def check_facts(s: Subject) -> None:
    """What ``prepare`` gives survives JSON, alone and in ``plan.json``; it is the same for the same study."""
    for plan in (s.plan, s.made.plan):
        facts = plan.method
        assert isinstance(facts, s.parts.method.Facts)
        assert facts.ndim == s.ndim
        assert type(facts)(**json.loads(facts.model_dump_json())) == facts, "facts do not survive JSON"
        text = json.dumps(plan.to_json(), allow_nan=False)
        assert Plan.from_json(json.loads(text), s.parts.method, "plan.json") == plan
    cases = [replace(c, given=copy.deepcopy(c.landmarks)) for c in s.study.cases]
    if s.plain:
        assert s.parts.prepare(replace(s.study, cases=cases)) == s.plan, "prepare depends on more than the study"
    for case, given in zip(s.study.cases, cases, strict=True):
        assert_same(case.landmarks, given.landmarks, "prepare changes the cases")


def check_stages(s: Subject) -> None:
    """Named once, numbered in order, of modules that are there."""
    stages = s.made.stages()
    assert stages, "there is nothing to train"
    assert len({x.name for x in stages}) == len(stages), "two stages have one name"
    for part in ("method", "refine"):
        own = [x for x in stages if x.part == part]
        assert [x.index for x in own] == list(range(len(own))), f"stages of the {part} are not numbered from 0"
    for stage in stages:
        assert stage.steps > 0 and stage.batch > 0 and stage.lr > 0 and stage.share > 0
        assert len(stage.rates) in (0, len(stage.modules))
        for name in stage.modules:
            assert any(True for _ in s.made.get_submodule(name).parameters()), f"{name} has nothing to train"


def check_stages_by_value(s: Subject) -> None:
    """A stage's name means nothing."""
    made, other = s.fresh(), copy.deepcopy(s.untouched).eval()
    for stage in other.stages():
        other.begin(_renamed(stage), s.evidence)
    assert other.plan == made.plan
    for stage in s.stages:
        given, again = s.batch(made, stage), s.batch(other, _renamed(stage))
        assert_same(given, again, f"stage {stage.name} goes by its name")
        losses = [s.loss(m, x, given) for m, x in ((made, stage), (other, _renamed(stage)))]
        assert_same(*losses, f"stage {stage.name} goes by its name")


def _renamed(stage: Stage) -> Stage:
    return replace(stage, name=f"refine_{'pose' * (stage.index + 1)}")


def check_begin(s: Subject) -> None:
    """Facts are replaced, never changed in place; to begin again, as a resumed run does, changes nothing."""
    made = copy.deepcopy(s.untouched)
    for stage in made.stages():
        facts = {name: part.facts for name, part in (("method", made.method), ("refine", made.refine)) if part}
        before = {name: f.model_dump() for name, f in facts.items()}
        made.begin(stage, s.evidence)
        assert {name: f.model_dump() for name, f in facts.items()} == before, f"{stage.name} changes facts in place"
        plan, state = plain_plan(made), {k: v.clone() for k, v in made.state_dict().items()}
        made.begin(stage, s.evidence)
        assert made.plan.to_json() == plan, f"{stage.name} begins otherwise the second time: the facts differ"
        assert_same(made.state_dict(), state, f"{stage.name} begins otherwise the second time")


# ---------------------------------------------------------------------- training


def check_examples(s: Subject) -> None:
    """An example depends on the case and the generator, on no weight and nothing global; no tensor holds NaN."""
    for stage in s.stages:
        made = weightless(s.fresh())
        if made.collect(s.cases, stage, np.random.default_rng(0)) is not None:
            continue
        firsts = []
        for case in s.cases:
            torch.manual_seed(1)
            np.random.seed(1)
            plan = plain_plan(made)
            with no_files():
                first = made.examples(case, stage, np.random.default_rng(4))
            torch.manual_seed(2)
            np.random.seed(2)
            random.seed(2)
            assert made.plan.to_json() == plan, f"{stage.name}: examples change the facts"
            for key, value in first.items():
                assert isinstance(value, torch.Tensor) and torch.isfinite(value).all(), f"{stage.name}: {key} holds NaN"
            firsts.append(first)
        again = weightless(s.fresh())
        for case, first in reversed(list(zip(s.cases, firsts, strict=True))):
            second = again.examples(case, stage, np.random.default_rng(4))
            assert_same(first, second, f"{stage.name}: an example depends on more than its case and generator")
        apart = again.examples(s.cases[2], stage, np.random.default_rng(5))
        assert any(not torch.equal(v, firsts[2][k]) for k, v in apart.items()), f"{stage.name}: generator not used"


def check_collect(s: Subject) -> None:
    """Where a stage collects, it gives batches without end enough, the same for the same weights and generator."""
    for stage in s.stages:
        streams = [s.fresh().collect(s.cases, stage, np.random.default_rng(4)) for _ in range(2)]
        if streams[0] is None or streams[1] is None:
            assert streams == [None, None]
            continue
        for _ in range(2):
            first, second = (next(x, None) for x in streams)
            assert first is not None and second is not None, f"{stage.name}: collect ends"
            assert_same(first, second, f"{stage.name}: a collected batch depends on more than weights and generator")
            assert all(torch.isfinite(v.float()).all() for v in first.values())


def check_training(s: Subject) -> None:
    """A step of each stage: a finite loss, and nothing outside the stage's modules changes; every parameter that is
    trained gets a gradient in one of the stages."""
    reached: set[int] = set()
    wanted: dict[int, str] = {}
    made = s.fresh()
    names = {id(p): n for n, p in made.named_parameters()}
    for stage in s.stages_of(4):  # of fewer, some may leave a unit out by chance
        batch = s.batch(made, stage)
        set_modes(made, stage)
        optimizer = make_optimizer(made, stage)
        trained = {id(p): names[id(p)] for g in optimizer.param_groups for p in g["params"]}
        wanted |= trained
        before = {k: v.clone() for k, v in made.state_dict().items()}
        plan = plain_plan(made)
        losses = s.loss(made, stage, batch)
        assert losses["loss"].shape == () and all(torch.isfinite(v).all() for v in losses.values()), (
            f"{stage.name}: the loss is no finite number: {losses}"
        )
        losses["loss"].backward()
        grown = {i for i, p in ((id(p), p) for p in made.parameters()) if p.grad is not None and bool(p.grad.any())}
        assert grown <= set(trained), f"{stage.name}: gradients beyond its modules"
        assert all(p.grad is None or torch.isfinite(p.grad).all() for p in made.parameters())
        reached |= grown
        optimizer.step()
        changed = {k for k, v in made.state_dict().items() if not torch.equal(v, before[k])}
        assert changed, f"{stage.name}: a step changes nothing"
        inside = stage.modules or ("",)
        beyond = [k for k in changed if not any(k.startswith(f"{m}.") or not m for m in inside)]
        assert not beyond, f"{stage.name}: changes {beyond}"
        assert made.plan.to_json() == plan, f"{stage.name}: the loss changes the facts"
        made.after_step(stage)
        made.zero_grad()
    lost = [n for i, n in wanted.items() if i not in reached and not _fits(n, s.untrained)]
    assert not lost, f"no stage gives a gradient to {lost}"


def _fits(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch(name, f"*.{p}") for p in patterns)


def check_unannotated(s: Subject) -> None:
    """A landmark that nobody annotated carries no loss: what is its own in the weights gets no gradient."""
    first = s.cases[2]
    bare = [first.with_landmarks(phantom.without(first.landmarks, "c"))]
    row = s.plan.names.index("c")
    for stage in s.stages:
        made = s.fresh()
        part = made.method if stage.part == "method" else made.refine
        assert part is not None
        batch = s.batch(made, stage, bare)
        set_modes(made, stage)
        made.eval()  # in the statistics of a batch it takes part
        s.loss(made, stage, batch)["loss"].backward()
        for name, p in part.named_parameters():
            rule = _rule(part, name)
            if p.grad is None or rule is None or _fits(f".{stage.name}.{name}", s.mixing):
                continue
            blocks = _by_landmark(p.grad, rule, len(s.plan.names))
            assert not blocks[row].any(), f"{stage.name}: {name} learns of a landmark that is not annotated"


def _rule(part: Method, name: str) -> PerLandmark | None:
    rule = next((r for pattern, r in part.per_landmark().items() if fnmatch(name, pattern)), None)
    return PerLandmark(rule) if isinstance(rule, int) else rule


def _by_landmark(value: torch.Tensor, rule: PerLandmark, count: int) -> torch.Tensor:
    value = value.movedim(rule.axis, 0)
    assert value.shape[0] % count == 0, "per_landmark: the axis does not run over landmarks"
    return value.unflatten(0, (-1, count)).transpose(0, 1) if rule.order == "inner" else value.unflatten(0, (count, -1))


# ---------------------------------------------------------------------- use


def check_locate(s: Subject) -> None:
    """All names in order at finite places, with a score from 0 to 1 and a covariance if any; nothing else happens."""
    made = s.fresh()
    with torch.inference_mode():
        made.find(s.image, s.alignment)  # what is loaded on first use is no file access
    values = s.image.array.copy()
    with alone(made), torch.inference_mode():
        found = made.find(s.image, s.alignment).landmarks
    np.testing.assert_array_equal(s.image.array, values, err_msg="changes the image")
    assert_same(found, s.answer, "the same image does not give the same answer")
    assert found.names == tuple(s.plan.names), "names or their order are not the plan's"
    assert found.points.shape == (len(s.plan.names), s.ndim), "points are not (N, D)"
    assert np.isfinite(found.points).all(), "a landmark lies nowhere"
    if found.score is not None:
        assert ((found.score >= 0) & (found.score <= 1)).all(), "scores lie in 0..1"
    if found.covariance is not None:
        c = found.covariance
        np.testing.assert_allclose(c, c.swapaxes(1, 2), atol=1e-6 * np.abs(c).max(), err_msg="covariance not symmetric")
        assert (np.linalg.eigvalsh(c) > -1e-6 * np.abs(c).max()).all(), "a covariance is not positive semidefinite"


def check_weights_count(s: Subject) -> None:
    """Other weights, other landmarks: what is trained is what is used."""
    made = s.fresh()
    with torch.no_grad():
        for stage in s.stages:
            for module in stage.modules or ("",):
                for p in made.get_submodule(module).parameters():
                    p.add_(0.5 * torch.randn_like(p) * (p.abs().mean() + 0.1))
    assert np.abs(s.find(made).points - s.answer.points).max() > 1e-6, "other weights change nothing"


def check_world(s: Subject) -> None:
    """An image that lies elsewhere is the same image: its landmarks lie elsewhere, too."""
    if s.placed and s.alignment is None:
        return
    shift = np.array([130.0, -75.0, 42.5])[: s.ndim]
    image = phantom.moved(s.image, Pose(np.eye(s.ndim), shift))
    np.testing.assert_allclose(s.find(s.made, image).points, s.answer.points + shift, atol=TOLERANCE_MM, err_msg=WORLD)


def check_first_guess(s: Subject) -> None:
    """With a first guess all landmarks are given, those that it lacks too; one of none of them is refused or not
    used."""
    if not s.plain:
        return
    method, truth = s.fresh().method, phantom.phantom(9, s.ndim)[1]
    found = method.locate(s.image, phantom.without(truth, "a"))
    assert found.names == tuple(s.plan.names) and np.isfinite(found.points).all()
    strange = Landmarks(("elsewhere",), truth.points[:1])
    try:
        again = method.locate(s.image, strange)
    except InputError as error:
        assert "none of the model's landmarks: a, b, c" in str(error)
    else:
        np.testing.assert_array_equal(again.points, method.locate(s.image).points)


def check_chunks(s: Subject) -> None:
    """How many landmarks go through the network at once changes nothing."""
    for name in ("settings", "refine"):
        settings = getattr(s.parts, name)
        if not hasattr(settings, "chunk") or (name == "refine" and not s.parts.refined):
            continue
        parts = replace(s.parts, **{name: settings.model_copy(update={"chunk": 2})})
        other = parts.build(s.made.plan).eval()
        other.load_state_dict(s.made.state_dict())
        np.testing.assert_allclose(s.find(other).points, s.answer.points, atol=TOLERANCE_MM)


# ---------------------------------------------------------------------- a model is its config, facts and weights


def check_rebuilt(s: Subject) -> None:
    """Config and facts through JSON, the state through safetensors: the same answer to the bit."""
    text = json.dumps(s.made.plan.to_json(), allow_nan=False)
    parts = Composition.of(type(s.config)(**json.loads(completed(s.config).model_dump_json())))
    other = parts.build(Plan.from_json(json.loads(text), parts.method, "plan.json"))
    tensors = {k: v.detach().clone().contiguous() for k, v in s.made.state_dict().items()}
    other.load_state_dict(load(save(tensors)))
    assert_same(s.find(other.eval()), s.answer, "rebuilt, it says something else")


def check_copies(s: Subject) -> None:
    """It goes to data workers: copied without its weights, pickled, and the copy makes the same examples."""
    for stage in s.stages:
        made = weightless(s.fresh())
        if made.collect(s.cases, stage, np.random.default_rng(0)) is not None:
            continue
        other = pickle.loads(pickle.dumps(made.to_empty(device="cpu")))
        example, again = (m.examples(s.cases[0], stage, np.random.default_rng(4)) for m in (s.fresh(), other))
        assert_same(example, again, f"{stage.name}: a pickled copy gives other examples")


def check_adapted(s: Subject) -> None:
    """Its facts in its own frame are its facts."""
    plan = s.made.plan
    same = replace(plan, method=s.parts.method.adapted(plan.method, plan.method))
    if same == plan:
        return
    other = s.parts.build(same).eval()
    other.load_state_dict(s.made.state_dict())
    np.testing.assert_allclose(s.find(other).points, s.answer.points, atol=TOLERANCE_MM)


def check_reordered(s: Subject) -> None:
    """``per_landmark``: with its landmarks in another order, and weights moved to them, it gives the same answer."""
    if not s.reordered:
        return
    order = ("d", "a", "e", "c", "b")
    other = _moved_to(s, order)
    found = s.find(other)
    assert found.names == order
    np.testing.assert_allclose(found.select(s.answer.names).points, s.answer.points, atol=TOLERANCE_MM)


def check_other_landmarks(s: Subject) -> None:
    """``per_landmark``: its weights go into a model of other landmarks, more or fewer, each to its name."""
    names = ("f", "c", "e", "a")
    found = s.find(_moved_to(s, names))
    assert found.names == names and np.isfinite(found.points).all()


def _moved_to(s: Subject, names: tuple[str, ...]) -> Composed:
    """The model of other landmarks, begun with this one's weights; ``f`` lies between a and b."""

    def moved(case: Case) -> Case:
        own = case.landmarks
        between = own.select(["a", "b", "c"]).points[[0, 2]].mean(0)
        more = Landmarks((*own.names, "f"), [*own.points, between], (*own.status, Status.DEFINED))
        return case.with_landmarks(more.select(names))

    study = replace(s.study, names=names, cases=[moved(c) for c in s.study.cases])
    plan = s.parts.prepare(study, s.made.plan)
    assert plan.names == list(names)
    other = s.parts.build(plan)
    for stage in other.stages():
        other.begin(stage, s.evidence)
    own = other.state_dict()
    for prefix, part, old in (("method.", other.method, s.made.method), ("refine.", other.refine, s.made.refine)):
        if part is None or old is None:
            continue
        rules = part.per_landmark()
        state = moved_weights(old.state_dict(), rules, list(names), s.plan.names, part.state_dict())
        for key, value in state.items():
            if _rule(part, key) is not None:
                assert own[f"{prefix}{key}"].shape == value.shape, f"per_landmark: {prefix}{key} does not fit"
    start = other.start_from(s.made.state_dict(), s.made.plan)
    assert any(k.startswith("method.") for k in start), "nothing is taken over"
    other.load_state_dict({**own, **start})
    return other.eval()


CHECKS = {name.removeprefix("check_"): value for name, value in list(globals().items()) if name.startswith("check_")}
# what an alignment or a refiner does not touch is checked without them, and what they share with both of them
ALONE = ("settings", "first_guess", "chunks", "copies", "adapted", "reordered", "weights_count", "collect")
TOGETHER = ("begin", "unannotated", "other_landmarks")


def checks_of(composition: str) -> list[str]:
    """The names of the checks for a composition."""
    left_out = {"plain": (), "both": ALONE}.get(composition, ALONE + TOGETHER)
    return [name for name in CHECKS if name not in left_out]
