"""Registration from landmarks on real pairs: by how much left-out landmarks are missed, and the files in SimpleITK.

    python studies/registration.py --manifest CASES.csv --out FILE.json [--pairs 60]

For ``--pairs`` ordered pairs of cases, drawn with a fixed seed: leave-one-out target registration error of each kind of
transform, rejected landmarks, and the largest distance of the thin-plate spline from its points. Then a tenth of the
landmarks is moved, each in a random direction by half the root mean square distance of all from their centre: the share
of these that is rejected, and how many others per pair. For the pair whose poses differ most: the moving image on the
fixed one's grid by our resampling, against SimpleITK's with the transform file that was written (both linear; grey
values, both rounded to whole numbers). Where the fixed image's spacing is the coarser one, ours is low-passed first and
SimpleITK's is not, so they differ.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from itertools import permutations
from pathlib import Path

import numpy as np
import SimpleITK as sitk

import common
from anatomark import Landmarks, read_image
from anatomark.cases.case import Case
from anatomark.core.shape import procrustes, rotation_angle
from anatomark.tools.register.fit import register_landmarks, summarised
from anatomark.tools.register.kind import Kind
from anatomark.tools.register.register import register
from manifests import COLUMNS, write_table

SEED = 5


def angle(fixed: Landmarks, moving: Landmarks) -> float:
    """Degrees by which the second head is turned against the first."""
    return rotation_angle(procrustes(fixed.points, moving.select(fixed.names).points).rotation)


def errors(landmarks: dict[str, Landmarks], pairs: list[tuple[str, str]]) -> dict[str, float]:
    """Figures over the pairs, for each kind."""
    out: dict[str, float] = {}
    for kind in Kind:
        fits = [register_landmarks(landmarks[a], landmarks[b], kind) for a, b in pairs]
        left_out, used = [f.left_out for f in fits], [f.residuals[f.used] for f in fits]
        tre, fre = (summarised(np.concatenate(values)) for values in (left_out, used))
        assert tre is not None and fre is not None
        out |= {f"{kind}_tre_{k}_mm": tre[k] for k in ("mean", "median", "p95", "max")}
        out[f"{kind}_fre_rms_mm"] = fre["rms"]
        kept = [register_landmarks(landmarks[a], landmarks[b], kind, keep_all=True).left_out for a, b in pairs]
        out[f"{kind}_tre_mean_none_rejected_mm"] = float(np.nanmean(np.concatenate(kept)))
        out[f"{kind}_rejected_per_pair"] = sum(len(f.rejected) for f in fits) / len(fits)
        out[f"{kind}_landmarks"] = sum(len(f.names) for f in fits) / len(fits)
        if kind is Kind.TPS:
            out["tps_largest_residual_mm"] = fre["max"]
    return out


def planted(landmarks: dict[str, Landmarks], pairs: list[tuple[str, str]]) -> dict[str, float]:
    """What becomes of landmarks that are put in wrong places."""
    rng, counts = np.random.default_rng(SEED), np.zeros(3, int)
    for a, b in pairs:
        fixed, moving = landmarks[a], landmarks[b]
        points = moving.points.copy()
        both = np.flatnonzero(moving.defined & fixed.select(moving.names).defined)
        reach = float(np.sqrt(((points[both] - points[both].mean(0)) ** 2).sum(1).mean()))
        wrong = rng.choice(both, max(1, len(both) // 10), replace=False)
        step = rng.normal(size=(len(wrong), 3))
        points[wrong] += reach / 2 * step / np.linalg.norm(step, axis=1, keepdims=True)
        rejected = register_landmarks(fixed, moving.with_points(points), Kind.AFFINE).rejected
        hit = {moving.names[i] for i in wrong} & set(rejected)
        counts += len(wrong), len(hit), len(rejected) - len(hit)
    share, others = counts[1] / counts[0], counts[2] / len(pairs)
    return {"planted_rejected_share": share, "planted_others_rejected_per_pair": others}


def against_simpleitk(fixed: Case, moving: Case, kind: str) -> dict[str, float]:
    """Differences in grey values between our resampled image and SimpleITK's with our transform file."""
    ending = ".h5" if kind == "tps" else ".tfm"
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out"
        manifest = Path(folder) / "cases.csv"
        write_table(manifest, COLUMNS, [(c.id, str(c.path), c.source, "") for c in (fixed, moving)])
        row = register(fixed.id, [manifest], out, kind).rows[0]
        ours = read_image(out / f"{moving.id}.nii.gz").array[0].astype(float)
        transform = sitk.ReadTransform(str(out / f"{moving.id}{ending}"))
        images = [sitk.ReadImage(str(c.path), sitk.sitkFloat32) for c in (fixed, moving)]
        low = float(sitk.GetArrayViewFromImage(images[1]).min())
        theirs = sitk.GetArrayFromImage(sitk.Resample(images[1], images[0], transform, sitk.sitkLinear, low))
    gap = np.abs(ours - np.rint(theirs).astype(float))
    figures = {
        f"{kind}_simpleitk_mean_difference": float(gap.mean()),
        f"{kind}_simpleitk_p999_difference": float(np.percentile(gap, 99.9)),
        f"{kind}_simpleitk_largest_difference": float(gap.max()),
        f"{kind}_simpleitk_share_above_1": float((gap > 1).mean()),
    }
    if kind == "tps":
        figures["tps_field_largest_error_mm"] = row["field"]["differs_from_spline_mm"]["max"]
    return figures


def main(given: Sequence[str] | None = None) -> None:
    """Register all pairs and write the figures."""
    parser = common.arguments(__doc__)
    parser.add_argument("--manifest", type=Path, required=True)
    parser.add_argument("--pairs", type=int, default=60)
    args = parser.parse_args(given)
    cases = {c.id: c for c in common.cases_of(args.manifest)}
    landmarks = {name: case.landmarks for name, case in cases.items()}
    every = list(permutations(cases, 2))
    drawn = np.random.default_rng(SEED).permutation(len(every))[: args.pairs]
    pairs = [every[int(i)] for i in drawn]
    a, b = max(every, key=lambda pair: angle(landmarks[pair[0]], landmarks[pair[1]]))
    figures: dict[str, float] = {"pairs": len(pairs), "turned_degrees": angle(landmarks[a], landmarks[b])}
    for side, name in (("fixed", a), ("moving", b)):
        figures[f"{side}_spacing_mm"] = float(cases[name].image().grid.spacing.max())
    figures |= errors(landmarks, pairs) | planted(landmarks, pairs)
    for kind in ("affine", "tps"):
        figures |= against_simpleitk(cases[a], cases[b], kind)
    common.record(args.out, figures, fixed=a, moving=b)


if __name__ == "__main__":
    common.run(main)
