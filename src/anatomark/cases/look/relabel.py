"""Which point belongs to which label: the assignment that fits the other cases best."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from anatomark.cases.look.medians import distance
from anatomark.cases.look.shape_check import ShapeStudy
from anatomark.core.grid import Array
from anatomark.core.shape import Pose, mean_rotation, procrustes

GAIN = 30.0  # drop in squared residuals, in units of the typical one, that another order of labels must bring


def label_cost(expected: Array, shape: Array, scale: Array) -> Array:
    """(N labels, N points) squared distances in units of each label's typical residual, capped where a point cannot be
    this label's; an unannotated point costs the cap."""
    squared = ((expected[:, None] - shape[None]) ** 2).sum(-1) / scale[:, None] ** 2
    return np.asarray(np.minimum(np.nan_to_num(squared, nan=np.inf), 1e4))


def best_order(m: int, study: ShapeStudy, cost: Array, *, search: bool) -> tuple[Array, NDArray[np.int64]]:
    """Expected points (N, D) of case ``m`` and, for each label, the index of the point that is it (-1: none), from the
    best assignment. With ``search`` the pose is sought without trusting the labels."""
    shape = study.shapes[m]
    seen = np.isfinite(shape).all(1)
    own = np.arange(len(shape))
    starts = [(study.expected[m], cost, study.scale()[m]), *(_searched(m, study, seen) if search else ())]
    tries = []
    for expected, costs, scale in starts:
        capped = np.minimum(costs, (2 * study.beyond) ** 2)
        owner = _assign(capped, seen)
        has = owner >= 0
        total = float(capped[own[has], owner[has]].sum()) + (5.0 if (owner[has] != own[has]).any() else 0.0)
        tries.append((total, expected, owner, capped, scale))
    _, expected, owner, capped, scale = min(tries, key=lambda one: one[0])
    given = np.where(seen, np.diag(label_cost(expected, shape, scale)), 0.0)
    for group in moved_groups(owner):
        after = np.array([capped[i, owner[i]] for i in group if owner[i] >= 0])
        if given[group].sum() - after.sum() < GAIN or (after >= (2 * study.beyond) ** 2).mean() > 0.2:
            owner[group] = np.where(seen[group], group, -1)
    return expected, owner


def _searched(m: int, study: ShapeStudy, seen: NDArray[np.bool_]) -> list[tuple[Array, Array, Array]]:
    """(expected points, label costs, their scale in mm) from the three poses of the median shape that lie closest to
    the points. What a case of unusual shape may differ by is not allowed: it is the labels that make it unusual."""
    shape, middle, scale = study.shapes[m], study.middle, study.typical
    apart = distance(middle[:, None], middle[None]) + np.diag(np.full(len(middle), np.inf))
    loose = np.full(len(middle), float(np.sqrt(np.mean(apart.min(1) ** 2))))
    tries = [_closest(pose, middle, shape[seen]) for pose in _start_poses(study, m)]
    out = []
    for _, pose in sorted(tries, key=lambda t: t[0])[:3]:
        cost = label_cost(pose.apply(middle), shape, loose)
        for _ in range(2):
            owner = _assign(cost, seen)
            expected = study.predict(np.where((owner >= 0)[:, None], shape[owner], np.nan))
            cost = label_cost(expected, shape, scale)
        out.append((expected, cost, scale))
    return out


def _start_poses(study: ShapeStudy, m: int) -> list[Pose]:
    """Poses of the median shape on case m that need no labels, or labels shifted along the list."""
    shape, middle = study.shapes[m], study.middle
    n, d = shape.shape
    poses = [procrustes(np.roll(middle, k, 0), shape) for k in range(1, n)] + [procrustes(middle[::-1], shape)]
    seen = shape[np.isfinite(shape).all(1)]
    centre, size = seen.mean(0), float(np.sqrt(((seen - seen.mean(0)) ** 2).sum(1).mean()))
    about = middle - middle.mean(0)
    scale = size / max(float(np.sqrt((about**2).sum(1).mean())), 1e-9)
    axes_a, axes_b = np.linalg.svd(about, full_matrices=False)[2].T, np.linalg.svd(seen - centre)[2].T
    turns = [mean_rotation([p.rotation for i, p in enumerate(study.poses) if i != m])]
    for signs in np.array(np.meshgrid(*[[-1.0, 1.0]] * d)).reshape(d, -1).T:
        turn = (axes_b * signs) @ axes_a.T
        if np.linalg.det(turn) > 0:
            turns.append(turn)
    return poses + [Pose(turn, centre - scale * turn @ middle.mean(0), scale) for turn in turns]


def _closest(pose: Pose, middle: Array, points: Array, rounds: int = 8) -> tuple[float, Pose]:
    """Iterated closest points: (mean nearest distance, pose), both ways so that no point is left alone."""
    far = np.zeros(1)
    for _ in range(rounds):
        apart = distance(pose.apply(middle)[:, None], points[None])
        to, back = apart.argmin(0), apart.argmin(1)
        far = np.concatenate([apart.min(0), apart.min(1)])
        pose = procrustes(np.concatenate([middle[to], middle]), np.concatenate([points, points[back]]))
    return float(far.mean()), pose


def _assign(cost: Array, seen: NDArray[np.bool_]) -> NDArray[np.int64]:
    """For each of N labels the index of its point, -1 where there are fewer points than labels: the assignment of
    least total cost, in which a label keeps its own point where that is no worse."""
    points = np.flatnonzero(seen)
    favoured = cost - np.eye(len(cost))
    label_of = hungarian(favoured[:, points].T)
    owner = np.full(len(cost), -1, dtype=np.int64)
    owner[label_of] = points
    return owner


def hungarian(cost: Array) -> NDArray[np.int64]:
    """(R,) the column of each row in the assignment of least total cost of an (R, C) matrix, R <= C."""
    rows, columns = cost.shape
    u, v = np.zeros(rows + 1), np.zeros(columns + 1)
    match, way = np.zeros(columns + 1, dtype=np.int64), np.zeros(columns + 1, dtype=np.int64)
    for row in range(1, rows + 1):
        match[0], column = row, 0
        least, used = np.full(columns + 1, np.inf), np.zeros(columns + 1, dtype=bool)
        while match[column]:
            used[column] = True
            reduced = cost[match[column] - 1] - u[match[column]] - v[1:]
            better = ~used[1:] & (reduced < least[1:])
            least[1:][better], way[1:][better] = reduced[better], column
            following = int(np.where(used, np.inf, least)[1:].argmin()) + 1
            step = least[following]
            u[match[used]] += step
            v[used] -= step
            least[~used] -= step
            column = following
        while column:
            match[column] = match[way[column]]
            column = int(way[column])
    out = np.empty(rows, dtype=np.int64)
    taken = np.flatnonzero(match[1:])
    out[match[1:][taken] - 1] = taken
    return out


def moved_groups(owner: NDArray[np.int64]) -> list[list[int]]:
    """Groups of labels among which points were exchanged (cycles, and chains that end at a label without a point)."""
    group = {i: {i} for i in range(len(owner))}
    for i, j in enumerate(owner):
        if j >= 0 and j != i and group[i] is not group[int(j)]:
            joined = group[i] | group[int(j)]
            group.update(dict.fromkeys(joined, joined))
    unique = {id(g): sorted(g) for g in group.values() if len(g) > 1}
    return list(unique.values())
