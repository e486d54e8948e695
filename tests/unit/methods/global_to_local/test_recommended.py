"""The recommended global stage on phantoms: what it is shown, how votes are read, what it finds, also in a crop."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

import phantom
from anatomark.cases.case import Case
from anatomark.core.grid import Grid
from anatomark.core.image import Image
from anatomark.core.landmarks import Landmarks
from anatomark.core.shape import Pose, random_rotation
from anatomark.errors import InputError
from anatomark.methods.base import Task
from anatomark.methods.global_to_local.net import BlockVotes, block_cells, log_displacement, log_votes, read_votes
from anatomark.methods.global_to_local.recommended import (
    GlobalToLocal,
    GlobalToLocalConfig,
    _random_cuts,
    consensus,
    inside_image,
    weighted_median,
)
from anatomark.methods.kit.posed import Views
from anatomark.model.start import moved_weights
from phantom import Trained

pytestmark = pytest.mark.usefixtures("float32")
SMALL: dict[str, Any] = {
    "block_px": 16, "cover": 3.2, "width": 8, "warped_copies": 20, "intensity": 0.5, "shift": 0.5,
    "steps": 450, "batch": 16, "anywhere_share": 0.1,
}  # fmt: skip
WINDOW = {"kind": "window", "low": 0.0, "high": 270.0}


def untrained(ndim: int, cases: list[tuple[Image, Landmarks]] | None = None, **settings: Any) -> GlobalToLocal:
    """Planned from ``cases`` (one phantom where none are given); a fixed window, as a crop may lack the brightest."""
    # so few steps learn few warps, and in 2D a pose is easily mistaken for another
    config = GlobalToLocalConfig(**{**SMALL, "warp_share": 0.2 if ndim == 2 else 0.3, **settings})
    study = replace(phantom.study(cases or [phantom.phantom(0, ndim)]), intensity=WINDOW)
    torch.manual_seed(1)
    return GlobalToLocal(config, GlobalToLocal.prepare(config, study))


@pytest.fixture(scope="module", params=[2, 3])
def trained(request: pytest.FixtureRequest, float32: None) -> Trained[GlobalToLocal]:
    return phantom.trained(untrained, request.param, pool=900)


def cropped(image: Image, axis: int, first: int, end: int) -> Image:
    """The part ``first`` ... ``end`` along one array axis."""
    cut = (slice(None), *(slice(first, end) if a == axis else slice(None) for a in range(image.ndim)))
    array = np.ascontiguousarray(image.array[cut])
    origin = image.grid.to_world(np.eye(image.ndim)[axis] * first)
    return Image(array, Grid.from_axes(array.shape[1:], image.grid.axes, origin), image.meta)


# ---------------------------------------------------------------------- it learns and finds


def test_it_asks_for_the_refiner_and_suits_2d_with_it() -> None:
    assert GlobalToLocal.refined
    task = Task(2, 19, 120, 60.0, 80.0, 0.1, refined=True)
    assert GlobalToLocal.suits(task) == "the best with the refiner on images held out of training"
    for other in ({"ndim": 3}, {"refined": False}, {"turned_deg": 61.0}):
        assert GlobalToLocal.suits(replace(task, **other)) is None


def test_the_phantoms_are_learned(trained: Trained[GlobalToLocal]) -> None:
    assert np.mean(trained.losses["global"][-10:]) < 0.4 * np.mean(trained.losses["global"][:3])
    errors = phantom.errors(trained.method, trained.cases)
    assert errors.mean() < 2.5  # a cell is 17 mm
    assert errors.max() < 7


def test_a_new_phantom_is_found_and_the_answer_knows_how_sure_it_is(trained: Trained[GlobalToLocal]) -> None:
    image, truth = phantom.phantom(50, trained.method.ndim)
    found = trained.method.locate(image)
    assert found.names == phantom.NAMES
    assert found.errors_to(truth).mean() < 3
    assert found.score is not None
    assert found.covariance is not None
    assert ((found.score > 0.6) & (found.score <= 1)).all()
    assert (np.linalg.eigvalsh(found.covariance) > 0).all()


def test_what_a_crop_cuts_away_scores_low_and_the_rest_is_found(trained: Trained[GlobalToLocal]) -> None:
    there, gone, errors = [], [], []
    for seed in range(6):
        image, truth = phantom.phantom(60 + seed, trained.method.ndim)
        index = image.grid.to_index(truth.points)[:, -1]
        order = np.argsort(index)
        cut = round((index[order[1]] + index[order[2]]) / 2)  # two of the five are cut away
        part = cropped(image, image.ndim - 1, cut, image.grid.shape[-1])
        found = trained.method.locate(part)
        assert found.score is not None
        gone.extend(found.score[order[:2]])
        there.extend(found.score[order[2:]])
        errors.extend(found.errors_to(truth)[order[2:]])
    assert np.quantile(gone, 0.8) < 0.5 < np.quantile(there, 0.2)
    assert np.median(errors) < 8


def test_a_first_guess_stands_in_for_the_search(trained: Trained[GlobalToLocal]) -> None:
    image, truth = trained.cases[2]
    turned = Pose(random_rotation(np.random.default_rng(0), trained.method.ndim), truth.points.mean(0))
    motion = Pose(turned.rotation, turned.translation - turned.rotation @ turned.translation)
    there, goal = phantom.moved(image, motion), truth.with_points(motion.apply(truth.points))
    near = goal.with_points(goal.points + np.random.default_rng(0).normal(0, 2.0, goal.points.shape))
    assert trained.method.locate(there, phantom.without(near, "a")).errors_to(goal).mean() < 3
    with pytest.raises(InputError, match="none of the model's landmarks"):
        trained.method.locate(image, Landmarks(("elsewhere",), truth.points[:1]))


def test_in_a_much_larger_image_the_anatomy_is_found_where_it_is(trained: Trained[GlobalToLocal]) -> None:
    method, d = trained.method, trained.method.ndim
    image, truth = trained.cases[0]
    wide = np.full((1, *(int(n * 2.5) for n in image.grid.shape)), 10, dtype=np.float32)
    wide += np.random.default_rng(0).normal(0, 1, wide.shape)
    first = [int(n * 1.4) for n in image.grid.shape]
    wide[(slice(None), *(slice(a, a + n) for a, n in zip(first, image.grid.shape, strict=True)))] = image.array
    large = Image(wide, Grid.from_axes(wide.shape[1:], image.grid.axes, image.grid.to_world(-np.array(first))))
    middle = large.grid.centre
    assert len(method._windows(large, np.eye(d), middle)) > 1
    assert len(method._windows(image, np.eye(d), image.grid.centre)) == 1
    assert method.locate(large).errors_to(truth).mean() < 5


# ---------------------------------------------------------------------- what it is shown


@pytest.mark.parametrize("ndim", [2, 3])
def test_the_block_shows_the_brightest_landmark_where_the_target_says(ndim: int) -> None:
    method = untrained(ndim, intensity=0.0, rotations_deg=180.0, warp_share=0.7, crop_share=0.5)
    case = phantom.training_cases(method, [phantom.phantom(0, ndim)])[0]
    misses, cut = [], 0
    for seed in range(60):
        example = method.examples(case, method.stages()[0], np.random.default_rng(seed))
        assert example["block"].shape == (1, *(16,) * ndim)
        if not example["here"][0]:
            cut += 1
            continue
        at = np.array(np.unravel_index(int(example["block"].argmax()), (16,) * ndim))[::-1] - 7.5
        misses.append(np.abs(at / 4 - example["target"][0].numpy()).max() * 4)
    assert np.median(misses) < 0.8  # voxels
    assert 0 < cut < 30


@pytest.mark.parametrize("ndim", [2, 3])
def test_a_crop_leaves_nothing_beyond_its_planes(ndim: int) -> None:
    method = untrained(ndim, intensity=0.0, warp_share=0.0, crop_share=1.0)
    image, truth = phantom.phantom(0, ndim)
    case = phantom.training_cases(method, [(replace(image, array=image.array + 500), truth)])[0]
    gone = 0
    for seed in range(30):
        example = method.examples(case, method.stages()[0], np.random.default_rng(seed))
        for n in np.flatnonzero(~example["here"].numpy()):
            at = np.round(example["target"][n].numpy() * 4 + 7.5).astype(int)[::-1]
            if ((at >= 1) & (at < 15)).all():
                gone += 1
                around = example["block"][(0, *(slice(a - 1, a + 2) for a in at))]
                assert around.min() == 0
    assert gone > 10


def test_cuts_leave_half_of_the_landmarks_or_more() -> None:
    image, truth = phantom.phantom(0, 3)
    left = []
    for seed in range(50):
        cuts = _random_cuts(np.random.default_rng(seed), image, truth.points, 20.0)
        for normal, limit in cuts:
            left.append((truth.points @ normal < limit).mean())
    assert min(left) >= 0.4
    assert max(left) == 1.0


def test_what_is_not_annotated_changes_nothing() -> None:
    method = untrained(2, warp_share=0.0)
    image, truth = phantom.phantom(0, 2)
    whole, holed = phantom.training_cases(method, [(image, truth), (image, phantom.without(truth, "c"))])
    stage = method.stages()[0]
    batch = method.examples(holed, stage, np.random.default_rng(0))
    assert batch["defined"].tolist() == [1, 1, 0, 1, 1]
    assert not batch["here"][2]
    assert all(values.isfinite().all() for values in batch.values())
    method.train()
    two = {k: v[None].repeat(2, *(1,) * v.ndim) for k, v in batch.items()}
    other = {**two, "target": two["target"].clone(), "here": two["here"].clone()}
    other["target"][:, 2], other["here"][:, 2] = 3.0, True
    torch.manual_seed(0)
    first = method.loss(two, stage)["loss"]
    torch.manual_seed(0)
    torch.testing.assert_close(method.loss(other, stage)["loss"], first)
    assert not torch.equal(method.examples(whole, stage, np.random.default_rng(0))["defined"], batch["defined"])


# ---------------------------------------------------------------------- votes


@pytest.mark.parametrize("ndim", [2, 3])
def test_votes_are_the_posteriors_mean_whatever_the_direct_point(ndim: int) -> None:
    centres = block_cells(ndim, 4)
    truth = torch.tensor([[[0.3, -1.2, 0.9][:ndim]]])
    wrong = truth + 1.0
    exact = log_displacement(truth[:, :, None] - centres) - log_displacement(wrong[:, :, None] - centres)
    logits = torch.randn(1, 1, 4**ndim + 1, generator=torch.Generator().manual_seed(0))
    votes = BlockVotes(wrong, logits, exact)
    torch.testing.assert_close(log_votes(votes, centres), log_displacement(truth[:, :, None] - centres))
    mean, cloud, here = read_votes(votes, centres)
    torch.testing.assert_close(mean, truth, atol=1e-4, rtol=0)
    assert cloud.abs().max() < 1e-4
    assert here.item() == pytest.approx(1 - logits.softmax(-1)[0, 0, -1].item(), abs=1e-6)


def test_two_opinions_spread_along_the_line_between_them() -> None:
    centres = block_cells(2, 4)
    logits = torch.full((1, 1, 17), -50.0)
    logits[0, 0, 0] = logits[0, 0, 3] = 0.0  # the first row's ends, 3 cells apart along x, each for its own centre
    votes = BlockVotes(torch.zeros(1, 1, 2), logits, -log_displacement(-centres)[None, None])
    mean, cloud, here = read_votes(votes, centres)
    torch.testing.assert_close(mean[0, 0], (centres[0] + centres[3]) / 2)
    torch.testing.assert_close(cloud[0, 0], torch.tensor([[2.25, 0.0], [0.0, 0.0]]), atol=1e-5, rtol=0)
    assert here.item() == pytest.approx(1)


def test_theweighted_median_is_the_median_and_heeds_weights() -> None:
    values = np.random.default_rng(0).normal(size=(8, 3, 2))
    np.testing.assert_allclose(weighted_median(values, np.ones((8, 3))), np.median(values, 0))
    np.testing.assert_allclose(weighted_median(values[:7], np.ones((7, 3))), np.median(values[:7], 0))
    weight = np.full((8, 3), 0.01)
    weight[5] = 1
    np.testing.assert_allclose(weighted_median(values, weight), values[5])


def test_views_agree_on_what_most_of_them_see_not_on_the_mean() -> None:
    rng = np.random.default_rng(0)
    shape = phantom.phantom(0, 3)[1].points
    seen = np.stack([shape + rng.normal(0, 0.5, shape.shape) for _ in range(5)] + [-shape, shape + 40, shape[::-1]])
    views = Views(seen, np.zeros((8, 5, 3, 3)), np.ones((8, 5)))
    weight = np.array([0.6] * 5 + [1.0] * 3)  # those that stand alone believe in themselves
    agreed = views.some(consensus(seen, weight, radius=20))
    np.testing.assert_array_equal(agreed.points, seen[:5])


def test_a_point_outside_the_image_is_not_credibly_in_it() -> None:
    image, _ = phantom.phantom(0, 2)
    index = np.array([[20.0, 20.0], [-0.5, 20.0], [20.0, image.grid.shape[1] - 0.5], [-4.0, 20.0]])
    depth = inside_image(image, image.grid.to_world(index), 1.0)
    assert depth[0] > 0.999
    np.testing.assert_allclose(depth[1:3], 1 / (1 + np.exp(-1)))
    assert depth[3] < 0.05


# ---------------------------------------------------------------------- weights of another model


def test_weights_of_another_model_find_their_landmarks() -> None:
    image, truth = phantom.phantom(0, 2)
    old = untrained(2)
    some = truth.select(["e", "b", "new"])
    cases = [(image, some.with_points(np.where(np.isfinite(some.points), some.points, truth.points[0])))]
    cases = [(image, Landmarks(some.names, np.vstack([some.points[:2], truth.points[:1]])))]
    study = replace(phantom.study(cases), names=some.names)
    new = GlobalToLocal(old.config, GlobalToLocal.prepare(old.config, study))
    state = moved_weights(old.state_dict(), new.per_landmark(), new.names, old.names, new.state_dict())
    new.load_state_dict(state)
    old.eval(), new.eval()
    x = torch.rand(1, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    for ours, theirs in zip(new.net(x), old.net(x), strict=True):
        torch.testing.assert_close(ours[:, :2], theirs[:, [4, 1]])


def test_a_plan_is_laid_into_the_frame_of_the_old() -> None:
    old, new = untrained(3).facts, untrained(3, [phantom.phantom(i, 3) for i in range(1, 4)]).facts
    adapted = GlobalToLocal.adapted(new, old)
    assert adapted.radius_mm == old.radius_mm
    np.testing.assert_allclose(adapted.mean_shape, old.mean_shape, atol=2.5)
    stranger = old.model_copy(update={"names": list("vwxyz")})
    assert GlobalToLocal.adapted(new, stranger) is new


def test_a_single_landmark_has_a_model_too() -> None:
    image, marks = phantom.phantom(0, 3)
    one = marks.select(["b"])
    study = replace(phantom.study([(image, one)]), names=("b",))
    config = GlobalToLocalConfig(**SMALL)
    method = GlobalToLocal(config, GlobalToLocal.prepare(config, study))
    (case,) = phantom.training_cases(method, [(image, one)])
    batch = method.examples(case, method.stages()[0], np.random.default_rng(0))
    loss = method.loss({k: v[None].repeat(2, *(1,) * v.ndim) for k, v in batch.items()}, method.stages()[0])
    assert loss["loss"] > 0
    assert np.isfinite(method.locate(image).points).all()


def test_an_absent_landmark_is_judged_but_not_placed() -> None:
    image, truth = phantom.phantom(4, 2)
    method = untrained(2, [(image, truth)], crop_share=0.0)
    case = Case("a", given=phantom.partly_known(truth), images=method.working_images(image))
    batch = method.examples(case, method.stages()[0], np.random.default_rng(0))
    assert batch["judged"][:3].tolist() == [1.0, 1.0, 0.0]
    assert batch["defined"][:3].tolist() == [1.0, 0.0, 0.0]
    assert not batch["here"][1]
