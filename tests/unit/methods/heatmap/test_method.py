"""The heatmap baseline on phantoms: what it is shown, what it learns and finds, and what its covariance says."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

import phantom
from anatomark.core.image import Image
from anatomark.core.landmarks import Landmarks
from anatomark.core.resample import sample
from anatomark.core.shape import Pose, procrustes, random_rotation
from anatomark.errors import InputError
from anatomark.methods import presets
from anatomark.methods.heatmap.method import Heatmap, HeatmapConfig
from anatomark.model.start import moved_weights
from phantom import Trained

pytestmark = pytest.mark.usefixtures("float32")
SMALL: dict[str, Any] = {
    "px": 32, "cover": 3.0, "maps": [16, 32, 32], "stem": 1, "looks": 2, "warped_copies": 20, "warp_share": 0.3,
    "intensity": 0.5, "batch": 8, "steps": 200,
}  # fmt: skip
IN_3D: dict[str, Any] = {"px": 24, "maps": [8, 16, 16], "batch": 4, "steps": 100}


def untrained(ndim: int, cases: list[tuple[Image, Landmarks]] | None = None, **settings: Any) -> Heatmap:
    """Planned from ``cases`` (one phantom where none are given), with its first weights."""
    config = HeatmapConfig(**{**SMALL, **(IN_3D if ndim == 3 else {}), **settings})
    torch.manual_seed(1)
    return Heatmap(config, Heatmap.prepare(config, phantom.study(cases or [phantom.phantom(0, ndim)])))


VARIANTS: dict[str, tuple[int, dict[str, Any]]] = {
    "2d": (2, {}),
    "3d": (3, {}),
    "2d-scn": (2, {"spatial": 8, "learn_sigma": True}),
    "2d-tree": (2, {"context": True, "local": True, "tree": True, "fitted": True, "framed": True}),
    "2d-l2": (2, {"loss": "l2", "steps": 400}),
}


@pytest.fixture(scope="module", params=VARIANTS)
def trained(request: pytest.FixtureRequest, float32: None) -> Trained[Heatmap]:
    ndim, settings = VARIANTS[request.param]
    return phantom.trained(partial(untrained, **settings), ndim, pool=80)


# ---------------------------------------------------------------------- it learns and finds


def test_its_presets_and_that_it_asks_for_alignment() -> None:
    assert presets("heatmap") == list(Heatmap.presets) == ["recommended", "scn", "tree"]
    assert Heatmap.aligned
    assert not Heatmap.refined
    assert not Heatmap.axis_bound
    assert untrained(2, **Heatmap.presets["scn"]).net.spatial is not None


def test_the_phantoms_are_learned(trained: Trained[Heatmap]) -> None:
    method = trained.method
    assert np.mean(trained.losses["heatmaps"][-10:]) < 0.6 * np.mean(trained.losses["heatmaps"][:5])
    new = [phantom.phantom(50 + i, method.ndim) for i in range(3)]
    for cases in (trained.cases, new):
        guess = method.model.mean + phantom._CENTRE[: method.ndim]
        blind = np.mean([np.linalg.norm(guess - t.points, axis=1) for _, t in cases])
        errors = phantom.errors(method, cases)
        assert errors.mean() < 0.4 * blind
        assert errors.mean() < 1.2  # a cell is 2 to 3 mm


def test_the_answer_knows_how_sure_it_is(trained: Trained[Heatmap]) -> None:
    method = trained.method
    image, _ = phantom.phantom(50, method.ndim)
    found = method.locate(image)
    assert found.names == phantom.NAMES
    assert found.score is not None
    assert found.covariance is not None
    assert ((found.score > 0.3) & (found.score <= 1)).all()
    np.testing.assert_allclose(found.covariance, found.covariance.transpose(0, 2, 1), atol=1e-6)
    sd = np.sqrt(np.linalg.eigvalsh(found.covariance))
    sigma = method.config.sigma * method.unit
    assert (sd > 0.2 * sigma).all()
    assert np.median(sd) < 3 * sigma  # mm, of a map about as wide as its target
    blank = method.locate(replace(image, array=np.full_like(image.array, 10)))
    assert np.isfinite(blank.points).all()
    assert blank.score is not None
    assert blank.score.mean() < found.score.mean()


def test_a_first_guess_stands_in_for_the_search(trained: Trained[Heatmap]) -> None:
    phantom.check_first_guess(trained.method, *trained.cases[2])


# ---------------------------------------------------------------------- what it is shown


@pytest.mark.parametrize("ndim", [2, 3])
def test_targets_lie_on_the_blobs(ndim: int) -> None:
    """The middle of a landmark's blob, read in the example's own block, is brighter than its surroundings."""
    image, marks = phantom.phantom(3, ndim)
    method = untrained(ndim, warp_share=1.0, intensity=0.0)
    case = phantom.training_cases(method, [(image, phantom.without(marks, "c"))])[0]
    stage = method.stages()[0]
    for seed in range(4):
        example = method.examples(case, stage, np.random.default_rng(seed))
        block = example["block"][0].numpy()
        assert block.shape == (method.px,) * ndim
        assert example["defined"].tolist()[2] == 0
        at = example["target"].numpy()[:, ::-1] * method.config.stem + (method.px - 1) / 2
        for i in (0, 1):  # the brightest
            if example["defined"][i]:
                place = tuple(np.round(at[i]).astype(int).clip(0, method.px - 1))
                near = tuple(slice(max(0, p - 2), p + 3) for p in place)
                assert block[place] > 0.8 * block[near].max()
                assert block[place] > np.median(block) + 0.2


def test_landmarks_outside_the_block_are_not_asked_for() -> None:
    method = untrained(2, cover=1.2)
    case = phantom.training_cases(method, [phantom.phantom(0, 2)])[0]
    known = method.examples(case, method.stages()[0], np.random.default_rng(0))["defined"]
    assert 0 < known.sum() < len(known)


def test_landmarks_that_are_not_defined_teach_nothing() -> None:
    method = untrained(2)
    stage = method.stages()[0]
    batch = {"block": torch.rand(2, 1, 32, 32), "target": torch.zeros(2, 5, 2), "defined": torch.zeros(2, 5)}
    batch["defined"][:, 1] = 1
    method.loss(batch, stage)["loss"].backward()
    grad = method.net.head.weight.grad
    assert grad is not None
    taught = grad.flatten(1).abs().sum(1) > 0
    assert taught.tolist() == [False, True, False, False, False]
    batch["defined"][:] = 0
    assert method.loss(batch, stage)["loss"] == 0


def test_learned_widths_are_penalised() -> None:
    method = untrained(2, learn_sigma=True)
    stage = method.stages()[0]
    batch = {"block": torch.rand(2, 1, 32, 32), "target": torch.zeros(2, 5, 2), "defined": torch.ones(2, 5)}
    parts = method.loss(batch, stage)
    assert parts["loss"].item() == pytest.approx(float(parts["maps"] + 0.05 * 1.5**2), rel=1e-5)
    parts["loss"].backward()
    assert method.log_sigma.grad is not None
    fixed = untrained(2)
    fixed.loss(batch, stage)["loss"].backward()
    assert fixed.log_sigma.grad is None


def test_learned_widths_grow_where_one_cannot_be_sure_and_come_back_from_the_least() -> None:
    method = untrained(2, learn_sigma=True)
    stage, maps = method.stages()[0], torch.zeros(1, 5, 32, 32)  # the network never knows
    method.net.forward = lambda block: maps  # type: ignore[method-assign]
    batch = {"block": torch.zeros(1, 1, 32, 32), "target": torch.zeros(1, 5, 2), "defined": torch.ones(1, 5)}
    with torch.no_grad():
        method.log_sigma[0] = -3.0  # near the least
    first = method._sigma().detach()
    assert 0.5 < first[0] < 0.6
    assert first[1:].tolist() == pytest.approx([1.5] * 4)
    optimizer = torch.optim.Adam([method.log_sigma], lr=0.05)
    for _ in range(200):
        optimizer.zero_grad()
        method.loss(batch, stage)["loss"].backward()
        optimizer.step()
    # the divergence from a flat map falls by 2 log sigma, the penalty grows by 0.05 sigma^2
    assert method._sigma().tolist() == pytest.approx([20**0.5] * 5, rel=0.05)


# ---------------------------------------------------------------------- plans


def test_an_alignment_leaves_little_to_learn() -> None:
    cases = [phantom.phantom(i, 3) for i in range(3)]
    study = replace(phantom.study(cases), aligned=True)
    config = HeatmapConfig(**{**SMALL, **IN_3D})
    facts = Heatmap.prepare(config, study)
    assert facts.rotations_deg == 12
    assert facts.start_shift_mm == pytest.approx(0.06 * facts.radius_mm)
    assert np.linalg.norm(np.array(facts.centre_mm) - phantom._CENTRE) < 6
    assert Heatmap.prepare(config, phantom.study(cases)).centre_mm is None


def test_a_new_template_places_the_frame_of_a_model_that_had_none() -> None:
    """Also where the old model's frame is not centred on the landmarks that both know."""
    old = untrained(3, [phantom.phantom(i, 3) for i in range(2)]).facts
    cases = [(image, marks.select(["a", "b", "c"])) for image, marks in (phantom.phantom(i, 3) for i in range(3))]
    study = replace(phantom.study(cases), names=("a", "b", "c"), aligned=True)
    new = Heatmap.prepare(HeatmapConfig(**{**SMALL, **IN_3D}), study)
    adapted = Heatmap.adapted(new, old)
    mean = np.asarray(adapted.mean_shape)
    assert np.linalg.norm(mean.mean(0)) > 1
    poses = [procrustes(mean, marks.points) for _, marks in cases]
    np.testing.assert_allclose(adapted.centre_mm, np.mean([p.translation for p in poses], 0), atol=1)
    there = old.model_copy(update={"centre_mm": [1.0, 2.0, 3.0]})
    assert Heatmap.adapted(new, there).centre_mm == [1.0, 2.0, 3.0]  # its template is the new one too
    assert Heatmap.adapted(old, there).centre_mm is None


def test_any_pose_begins_in_many(trained: Trained[Heatmap]) -> None:
    """Where any pose may come the search's first view is one of ``starts`` turned ones, and still an answer."""
    if trained.method.ndim == 3:
        pytest.skip("one dimension is enough")
    facts = trained.method.facts.model_copy(update={"rotations_deg": 180.0})
    method = Heatmap(trained.method.config, facts)
    method.load_state_dict(trained.method.state_dict())
    image, truth = trained.cases[0]
    turn = random_rotation(np.random.default_rng(2), 2)
    middle = np.asarray(image.grid.centre)
    motion = Pose(turn, middle - turn @ middle)
    found = method.locate(phantom.moved(image, motion))
    assert found.errors_to(truth.with_points(motion.apply(truth.points))).mean() < 2.0


def test_weights_follow_their_landmarks_names() -> None:
    cases = [phantom.phantom(i, 2) for i in range(2)]
    old = untrained(2, cases, spatial=4)
    order = ("c", "a", "new", "e", "b")
    new = Heatmap(old.config, old.facts.model_copy(update={"names": list(order)}))
    state = moved_weights(old.state_dict(), new.per_landmark(), order, old.names, new.state_dict())
    head = old.net.head.weight
    torch.testing.assert_close(
        state["net.head.weight"], torch.stack([head[2], head[0], head.mean(0), head[4], head[1]])
    )
    new.load_state_dict(state)
    block = torch.rand(1, 1, 32, 32)
    with torch.no_grad():
        old.net.spatial, new.net.spatial = None, None
        torch.testing.assert_close(new.net(block)[:, [0, 1, 3, 4]], old.net(block)[:, [2, 0, 4, 1]])


def test_a_block_that_cannot_be_halved_is_refused() -> None:
    with pytest.raises(InputError, match=r"method.px: 34 cannot be halved so often; take a multiple of 4"):
        untrained(2, px=34)


def test_what_a_voxel_sees_is_in_the_image() -> None:
    image, marks = phantom.phantom(0, 2)
    seen = untrained(2).working_images(image)["block"]
    values = sample(seen, marks.points)[0].numpy()
    assert (np.diff(values) < 0).all()  # from the brightest to the darkest
