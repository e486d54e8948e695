"""Pictorial structures: which of each landmark's candidates agree with those of its neighbours in a tree.

Felzenszwalb and Huttenlocher: Pictorial Structures for Object Recognition (IJCV 2005); the tree is Chow and Liu's
(1968): of all trees the one whose neighbours lie most firmly to each other. A shape model of what is near, not of the
whole: a spine may bend as it likes, but no vertebra is skipped.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from anatomark.core.grid import Array
from anatomark.methods.base import Coordinate, Stored

OUTLIER = 1e-3  # share of neighbours that lie anywhere
WIDER = 1.5  # times the covariance that training shows: new cases vary more
LEAST = 0.01  # radii: standard deviation of an offset, at least
PRIOR, PRIOR_SD = 5.0, 0.25  # cases that the prior counts as, and its standard deviation in lengths of the offset
CLIP = 3.0  # robust standard deviations: what lies farther off counts as if it lay there


class TreeFacts(Stored):
    """:class:`Tree` as plain JSON."""

    edges: list[list[int]]
    offset: list[list[Coordinate]]
    covariance: list[list[list[float]]]

    def check(self, landmarks: int, ndim: int) -> None:
        """Raises ValueError unless it is a tree of so many landmarks, parents first."""
        children = [c for _, c in self.edges] if all(len(e) == 2 for e in self.edges) else []
        root = sorted(set(range(landmarks)) - set(children))
        known = set(root)
        for parent, child in self.edges if len(root) == 1 and len(children) == landmarks - 1 else [[-1, -1]]:
            if parent not in known:
                raise ValueError(f"tree: its edges are no tree of {landmarks} landmarks")
            known.add(child)
        if not len(self.offset) == len(self.covariance) == len(self.edges) or any(len(o) != ndim for o in self.offset):
            raise ValueError(f"tree: is not {landmarks - 1} offsets of {ndim} coordinates")
        for one in self.covariance:
            matrix = np.asarray(one) if all(len(row) == ndim for row in one) else np.zeros((0, 0))
            if matrix.shape != (ndim, ndim) or (matrix != matrix.T).any() or np.linalg.eigvalsh(matrix)[0] <= 0:
                raise ValueError("tree: a covariance is none")


@dataclass(frozen=True, eq=False)
class Tree:
    """``edges`` (N - 1, 2): parent and child, parents first; ``offset`` (N - 1, D) from the parent to the child, mm in
    the mean shape's frame, with ``covariance`` (N - 1, D, D) mm^2."""

    edges: list[tuple[int, int]]
    offset: Array
    covariance: Array

    @classmethod
    def learned(cls, shapes: Array, radius: float) -> Tree:
        """From shapes (M, N, D) mm in the mean shape's frame, NaN = missing. Medians and clipped covariances: a few
        wrong points do not bend it."""
        n = shapes.shape[1]
        offsets, covariances, looseness = zip(*(_offsets(shapes, i, radius) for i in range(n)), strict=True)
        firm = np.stack(looseness)
        np.fill_diagonal(firm, np.inf)
        root = int(firm.min(1).argmin()) if n > 1 else 0
        nearest, parent, inside = firm[root].copy(), np.full(n, root), np.arange(n) == root
        edges = []
        for _ in range(n - 1):  # Prim's algorithm
            child = int(np.where(inside, np.inf, nearest).argmin())
            edges.append((int(parent[child]), child))
            inside[child] = True
            closer = firm[child] < nearest
            nearest, parent = np.where(closer, firm[child], nearest), np.where(closer, child, parent)
        d = shapes.shape[2]
        return cls(
            edges,
            np.array([offsets[i][j] for i, j in edges]).reshape(-1, d),
            np.array([covariances[i][j] for i, j in edges]).reshape(-1, d, d),
        )

    def facts(self) -> TreeFacts:
        """The same as plain JSON."""
        edges = [list(e) for e in self.edges]
        return TreeFacts(edges=edges, offset=self.offset.tolist(), covariance=self.covariance.tolist())

    @classmethod
    def of(cls, facts: TreeFacts) -> Tree:
        """The inverse of :meth:`facts`."""
        d = len(facts.offset[0]) if facts.offset else 1
        offset = np.asarray(facts.offset, dtype=np.float64).reshape(-1, d)
        covariance = np.asarray(facts.covariance, dtype=np.float64).reshape(-1, d, d)
        return cls([(i, j) for i, j in facts.edges], offset, covariance)

    def beliefs(self, places: torch.Tensor, log_mass: torch.Tensor, volume: float) -> torch.Tensor:
        """(B, N, K) the probability of each of K candidates at ``places`` (B, N, K, D) mm in the mean shape's frame,
        with the logarithm of what the image says of them ``log_mass`` (B, N, K), given all others: sums and products
        over the tree, up and down. ``volume`` mm^D that an outlier may lie in."""
        inward = log_mass.double().clone()  # what a landmark and those below it say of its places
        pairs = [self._pair(places, e, volume) for e in range(len(self.edges))]
        up: dict[int, torch.Tensor] = {}
        for e in reversed(range(len(self.edges))):
            parent, child = self.edges[e]
            up[e] = torch.logsumexp(pairs[e] + inward[:, child, None], 2)
            inward[:, parent] += up[e]
        whole = inward.clone()
        for e, (parent, child) in enumerate(self.edges):
            others = whole[:, parent] - up[e]
            whole[:, child] += torch.logsumexp(pairs[e] + others[:, :, None], 1)
        return whole.softmax(-1)

    def _pair(self, places: torch.Tensor, e: int, volume: float) -> torch.Tensor:
        """(B, K, K) log density of the child's places (last) given the parent's."""
        parent, child = self.edges[e]
        covariance = torch.from_numpy(self.covariance[e] * WIDER)
        away = places[:, child, None].double() - places[:, parent, :, None].double() - torch.from_numpy(self.offset[e])
        d = away.shape[-1]
        square = torch.einsum("bpci,ij,bpcj->bpc", away, torch.linalg.inv(covariance), away)
        log = -0.5 * square - 0.5 * torch.logdet(2 * torch.pi * covariance)
        anywhere = float(np.log(OUTLIER / max(volume, 1e-12)))
        return torch.logaddexp(log + float(np.log1p(-OUTLIER)), torch.full_like(log, anywhere)) if d else log


def _offsets(shapes: Array, i: int, radius: float) -> tuple[Array, Array, Array]:
    """Offsets (N, D) from landmark ``i`` to each, their covariances (N, D, D), and how loose they are (N,): the
    logarithm of their volume; infinite where the two are never seen together."""
    away = shapes - shapes[:, i : i + 1]
    seen = np.isfinite(away).all(2)
    count = seen.sum(0)
    d = shapes.shape[2]
    never = count == 0
    away = np.where(never[None, :, None], 0.0, away)
    offset = np.nanmedian(away, 0)
    rest = away - offset
    sd = 1.4826 * np.nanmedian(np.abs(rest), 0) + 1e-9
    rest = np.nan_to_num(np.clip(rest, -CLIP * sd, CLIP * sd))
    sums = np.einsum("mni,mnj->nij", rest, rest)
    prior = (PRIOR_SD * np.linalg.norm(offset, axis=1)) ** 2 * PRIOR
    total = count + PRIOR
    covariance = (sums + prior[:, None, None] * np.eye(d)) / total[:, None, None] + (LEAST * radius) ** 2 * np.eye(d)
    loose = np.where(never, np.inf, np.linalg.slogdet(covariance)[1])
    return offset, covariance, loose
