"""How large the refiner's sub-images are, level by level: sized by the errors of what comes before them."""

from __future__ import annotations

import numpy as np
from pydantic import Field

from anatomark.core.grid import Array
from anatomark.methods.base import Evidence, Length, Share, Stored

FEWEST = 30  # errors from which on their quantiles size a sub-image
MOST_FOUND = 0.75  # share of cases that must be found for the others to count as exceptions
LOST = 0.3  # radii: median error of a case from which on its pose counts as lost
GUESSED = (0.1, 0.04, 0.02)  # radii: errors to cover where none were measured
CENTRAL = (0.5, 0.9, 0.9)  # of a level's half width: so far reach the errors to cover; the first needs surroundings too


class LevelFacts(Stored):
    """A level's sub-images: ``spacing_mm`` of their pixels, ``half_mm`` of their width, made for errors up to
    ``reach_mm`` by ``source``; they cover a share ``coverage`` of so many ``errors``."""

    spacing_mm: Length
    reach_mm: Length
    half_mm: Length
    source: str
    coverage: Share | None
    errors: int = Field(ge=0)

    def described(self, px: int) -> str:
        """For the model card; ``px``: pixels along a sub-image."""
        size = f"sub-images of {px} pixels, {self.spacing_mm:.3g} mm each, half width {self.half_mm:.3g} mm"
        made = f"made for errors up to {self.reach_mm:.3g} mm"
        if self.coverage is None:
            return f"{size}; {made} ({self.source})."
        covered = f"they cover {self.coverage:.1%} of {self.errors} errors of what comes before ({self.source})"
        return f"{size}; {made}; {covered}."


def sized(
    k: int,
    px: int,
    radius_mm: float,
    voxel_mm: float,
    evidence: Evidence,
    *,
    coverage: float,
    reach_mm: float | None = None,
) -> LevelFacts:
    """Level ``k`` (from 0) with sub-images of ``px`` pixels for an anatomy of a radius, in images of a voxel.

    It is made for errors up to ``reach_mm``, else for the share ``coverage`` of those in the evidence.
    """
    errors, usual = _errors(evidence), _errors(evidence, LOST * radius_mm)
    if reach_mm is not None:
        reach, source = reach_mm, "given"
    elif len(usual) >= FEWEST:
        source = evidence.source
        # copies of training cases are found more easily than new cases
        reach = float(np.quantile(usual, coverage)) * (1.5 if source == "augmented copies" else 1.0)
    else:
        reach, source = GUESSED[k] * radius_mm, "guessed from the landmarks' extent"
        if len(usual):  # too few to say how small the errors are, but not how large
            reach = max(reach, float(np.quantile(usual, coverage)))
    finest = max(0.75 * voxel_mm, radius_mm / 350)
    spacing = float(np.clip(reach / (CENTRAL[k] * px / 2), finest, radius_mm / 20))
    half = spacing * px / 2
    covered = float((errors <= half).mean()) if len(errors) else None
    return LevelFacts(
        spacing_mm=spacing, reach_mm=reach, half_mm=half, source=source, coverage=covered, errors=len(errors)
    )


def _errors(evidence: Evidence, lost_mm: float = np.inf) -> Array:
    """All errors in mm that the evidence holds; without cases whose median error says that their pose was lost: no
    sub-image brings these back."""
    truth = evidence.truth
    cases = [p.errors_to(truth[c].select(p.names)) for c, p in evidence.predictions.items()]
    cases = [e for e in cases if np.isfinite(e).any()]
    usual = [e for e in cases if np.median(e[np.isfinite(e)]) <= lost_mm]
    if len(usual) < MOST_FOUND * len(cases):  # so many are no exceptions
        usual = cases
    errors = np.concatenate(usual) if usual else np.zeros(0)
    return np.asarray(errors[np.isfinite(errors)])
