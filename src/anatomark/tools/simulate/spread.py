"""Points spread over an anatomy, and carried to the same places in other images of it by registration."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch

from anatomark.core.grid import Array, Grid
from anatomark.core.image import Image
from anatomark.core.intensity import intensity_rule, normalise, otsu
from anatomark.core.landmarks import Landmarks, common_names
from anatomark.core.resample import resample, sample, sample_index
from anatomark.core.shape import mean_shape, procrustes
from anatomark.errors import InputError
from anatomark.io.itk import toolkit
from anatomark.tools.simulate.deform import deformation

PointMap = Callable[[Array], Array]
CANDIDATES = 40_000  # voxels of the foreground among which points are chosen
RELAXED = 6  # rounds of Lloyd's algorithm
VOXELS = {2: 400, 3: 100}  # along the longest axis of the grid on which images are registered, by dimension


def spread_points(image: Image, count: int, rng: np.random.Generator) -> Array:
    """``count`` points (K, D) in world mm, evenly spread over the volume of the foreground.

    The foreground is what is brighter than Otsu's threshold in the normalised image: its largest part, with its holes
    filled. Points farthest from each other, then moved to the middles of their regions (Lloyd 1982), are even inside as
    well as along the surface. Raises InputError where the foreground has fewer voxels than that.
    """
    candidates = _foreground(image)
    if len(candidates) < 4 * count:
        raise InputError(f"{image.meta.get('path', 'image')}: its foreground has no room for {count} points")
    chosen = candidates[rng.permutation(len(candidates))[:CANDIDATES]]
    points = chosen[_farthest(chosen, count)]
    for _ in range(RELAXED):
        nearest, _ = _nearest(chosen, points)
        sums = np.stack([np.bincount(nearest, chosen[:, a], count) for a in range(chosen.shape[1])], 1)
        middles = sums / np.maximum(np.bincount(nearest, minlength=count), 1)[:, None]
        # a middle may lie outside a bent region: the candidate nearest to it stands in
        points = chosen[_nearest(middles, chosen)[0]]
    return _distinct(points, chosen)


def _foreground(image: Image) -> Array:
    """(M, D) world mm of the voxels of the foreground, on the working grid."""
    sitk = toolkit()
    coarse = resample(_grey(image), _working(image))
    mask = sitk.GetImageFromArray((coarse.array[0] > otsu(coarse.array[0])).astype(np.uint8))
    mask = sitk.BinaryMorphologicalClosing(mask, [2] * image.ndim)
    parts = sitk.RelabelComponent(sitk.ConnectedComponent(mask), sortByObjectSize=True)
    filled = sitk.GetArrayFromImage(sitk.BinaryFillhole(parts == 1)) > 0
    return coarse.grid.to_world(np.argwhere(filled))


def _farthest(points: Array, count: int) -> list[int]:
    """Rows of ``points`` (M, D), each farthest from those before it; the first is nearest the middle."""
    rows = [int(((points - points.mean(0)) ** 2).sum(1).argmin())]
    distance = np.full(len(points), np.inf)
    while len(rows) < count:
        np.minimum(distance, ((points - points[rows[-1]]) ** 2).sum(1), out=distance)
        rows.append(int(distance.argmax()))
    return rows


def _nearest(points: Array, among: Array) -> tuple[np.ndarray, Array]:
    """For each point (M, D) the row of ``among`` (K, D) nearest to it, and the squared distance; in chunks."""
    rows, distances = [], []
    middle = among.mean(0)
    a = (among - middle).astype(np.float32)
    size = (a**2).sum(1)
    for part in np.array_split(points - middle, max(1, len(points) * len(among) // 20_000_000)):
        squared = size - 2 * part.astype(np.float32) @ a.T
        rows.append(squared.argmin(1))
        distances.append(squared.min(1) + (part**2).sum(1))
    return np.concatenate(rows), np.concatenate(distances)


def _distinct(points: Array, among: Array) -> Array:
    """``points`` where one that came twice is replaced by the candidate farthest from all."""
    _, first = np.unique(points, axis=0, return_index=True)
    kept = points[np.sort(first)]
    while len(kept) < len(points):
        kept = np.vstack([kept, among[_nearest(among, kept)[1].argmax()]])
    return kept


def nearest_to_mean(cases: Mapping[str, Landmarks]) -> str:
    """The case whose shape, after a similarity, is nearest the mean shape of all (mean squared distance over its
    defined landmarks, of those with all landmarks that most cases have)."""
    names = common_names(cases.values())
    shapes = np.stack([one.select(names).points for one in cases.values()])
    seen = np.isfinite(shapes).all(2)
    shapes = shapes[:, seen.any(0)]
    if len(shapes) == 1 or shapes.shape[1] < 2:
        return next(iter(cases))
    mean, poses = mean_shape(shapes)
    off = np.array([np.nanmean(((p.apply(mean) - s) ** 2).sum(1)) for p, s in zip(poses, shapes, strict=True)])
    count = np.isfinite(shapes).all(2).sum(1)
    return list(cases)[int(np.where(count == count.max(), off, np.inf).argmin())]


def carry_points(points: Array, reference: tuple[Image, Landmarks], other: tuple[Image, Landmarks]) -> Array:
    """Where in ``other`` the ``points`` (K, D) mm of ``reference`` lie; NaN where outside the image.

    First the affine map that fits the common landmarks (a similarity, where they are too few), then deformable
    registration of the images after that map (:func:`anatomark.tools.simulate.deform.deformation`). The common
    landmarks do not bend the result further: left out one by one, they were met no better where the others did so.
    Raises InputError where no landmark is common.
    """
    (image, here), (onto, there) = reference, (other[0], other[1].select(reference[1].names))
    common = here.defined & there.defined
    if not common.any():
        raise InputError("a case shares no defined landmark with the reference; points cannot be carried to it")
    out = deformable_map(image, onto, linear_map(here.points[common], there.points[common]))(points)
    return np.where(onto.grid.contains(out)[:, None], out, np.nan)


def deformable_map(image: Image, other: Image, first: PointMap) -> PointMap:
    """The map of world points (K, D) of ``image`` to those of ``other``: ``first``, roughly right, made precise by
    deformable registration of the images. Points outside ``image`` move as its border does."""
    grid = _working(image)
    moving = _grey(other)
    moving = resample(moving, moving.grid.isotropic(float(grid.spacing[0])))
    seen = sample(moving, first(grid.points()), fill=np.nan).numpy()[0]
    field = deformation(resample(_grey(image), grid).array[0], seen)

    def carry(points: Array) -> Array:
        index = grid.to_index(points)
        within = torch.from_numpy(np.clip(index, 0, np.asarray(grid.shape) - 1))
        return first(grid.to_world(index + sample_index(field, within).movedim(0, -1).numpy()))

    return carry


def _working(image: Image) -> Grid:
    grid = image.grid
    return grid.isotropic(max(float(grid.extent_mm.max()) / VOXELS[grid.ndim], float(grid.spacing.min())))


def _grey(image: Image) -> Image:
    return normalise(image, intensity_rule(None, [image]))


def linear_map(source: Array, target: Array) -> PointMap:
    """The affine map of world points that takes ``source`` (N, D) nearest to ``target``; a similarity where N is not
    well above D + 1, or all lie about in one plane."""
    n, d = source.shape
    spread = np.linalg.svd(source - source.mean(0), compute_uv=False)
    if n < 2 * (d + 1) or spread[-1] < 0.1 * spread[0]:
        return procrustes(source, target).apply
    weights = np.linalg.lstsq(np.hstack([np.ones((n, 1)), source]), target, rcond=None)[0]
    return lambda world: world @ weights[1:] + weights[0]
