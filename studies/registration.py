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

import argparse
import platform
import subprocess
import tempfile
from itertools import permutations
from pathlib import Path

import numpy as np
import SimpleITK as sitk

import anatomark
from anatomark import Landmarks
from anatomark.cases.manifest import Case, read_manifest
from anatomark.core.shape import procrustes, rotation_angle
from anatomark.io.atomic import write_json
from anatomark.io.images import image_grid, read_image
from anatomark.tools.register.fit import register_landmarks, summarised
from anatomark.tools.register.linear_fit import Kind
from anatomark.tools.register.register import Request, Sources, register

SEED = 5


def angle(fixed: Landmarks, moving: Landmarks) -> float:
    """Degrees by which the second head is turned against the first."""
    return rotation_angle(procrustes(fixed.points, moving.select(fixed.names).points).rotation)


def errors(marks: dict[str, Landmarks], pairs: list[tuple[str, str]]) -> dict[str, float]:
    """Figures over the pairs, for each kind."""
    out: dict[str, float] = {}
    for kind in Kind:
        found = [register_landmarks(marks[a], marks[b], kind) for a, b in pairs]
        tre, fre = (summarised(np.concatenate(v)) for v in ([f.left_out for f in found],
                                                            [f.residuals[f.used] for f in found]))  # fmt: skip
        assert tre is not None and fre is not None
        out |= {f"{kind}_tre_{k}_mm": tre[k] for k in ("mean", "median", "p95", "max")}
        out[f"{kind}_fre_rms_mm"] = fre["rms"]
        kept = [register_landmarks(marks[a], marks[b], kind, keep_all=True).left_out for a, b in pairs]
        out[f"{kind}_tre_mean_none_rejected_mm"] = float(np.nanmean(np.concatenate(kept)))
        out[f"{kind}_rejected_per_pair"] = sum(len(f.rejected) for f in found) / len(found)
        out[f"{kind}_landmarks"] = sum(len(f.names) for f in found) / len(found)
        if kind is Kind.TPS:
            out["tps_largest_residual_mm"] = fre["max"]
    return out


def planted(marks: dict[str, Landmarks], pairs: list[tuple[str, str]]) -> dict[str, float]:
    """What becomes of landmarks that are put in wrong places."""
    rng, there, found, others = np.random.default_rng(SEED), 0, 0, 0
    for a, b in pairs:
        points = marks[b].points.copy()
        known = np.flatnonzero(marks[b].defined & marks[a].select(marks[b].names).defined)
        reach = float(np.sqrt(((points[known] - points[known].mean(0)) ** 2).sum(1).mean()))
        wrong = rng.choice(known, max(1, len(known) // 10), replace=False)
        step = rng.normal(size=(len(wrong), 3))
        points[wrong] += reach / 2 * step / np.linalg.norm(step, axis=1, keepdims=True)
        rejected = register_landmarks(marks[a], marks[b].with_points(points), Kind.AFFINE).rejected
        hit = {marks[b].names[i] for i in wrong} & set(rejected)
        there, found, others = there + len(wrong), found + len(hit), others + len(rejected) - len(hit)
    return {"planted_rejected_share": found / there, "planted_others_rejected_per_pair": others / len(pairs)}


def against_simpleitk(fixed: Case, moving: Case, kind: str) -> dict[str, float]:
    """Differences in grey values between our resampled image and SimpleITK's with our transform file."""
    ending = ".h5" if kind == "tps" else ".tfm"
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out"
        manifest = Path(folder) / "cases.csv"
        rows = "".join(f"{c.id},{c.image},{c.landmarks},\n" for c in (fixed, moving))
        manifest.write_text("case,image,landmarks,split\n" + rows)
        row = register(Sources(fixed.id, (manifest,)), out, Request(kind)).rows[0]
        ours = read_image(out / f"{moving.id}.nii.gz").array[0].astype(float)
        transform = sitk.ReadTransform(str(out / f"{moving.id}{ending}"))
        images = [sitk.ReadImage(str(c.image), sitk.sitkFloat32) for c in (fixed, moving)]
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


def main() -> None:
    """Run and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--manifest", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--pairs", type=int, default=60)
    given = parser.parse_args()
    cases = {c.id: c for c in read_manifest(given.manifest).cases}
    marks = {name: case.read_landmarks() for name, case in cases.items()}
    every = list(permutations(cases, 2))
    drawn = np.random.default_rng(SEED).permutation(len(every))[: given.pairs]
    pairs = [every[int(i)] for i in drawn]
    a, b = max(every, key=lambda pair: angle(marks[pair[0]], marks[pair[1]]))
    figures: dict[str, float | str] = {"pairs": len(pairs), "fixed": a, "moving": b}
    figures["turned_degrees"] = angle(marks[a], marks[b])
    for side, name in (("fixed", a), ("moving", b)):
        figures[f"{side}_spacing_mm"] = float(image_grid(cases[name].image).spacing.max())
    figures |= errors(marks, pairs) | planted(marks, pairs)
    for kind in ("affine", "tps"):
        figures |= against_simpleitk(cases[a], cases[b], kind)
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    write_json(given.out, {
        "figures": figures, "machine": f"{platform.machine()}, {platform.system()}, Python {platform.python_version()}",
        "version": anatomark.__version__, "commit": commit.stdout.strip(),
    })  # fmt: skip


if __name__ == "__main__":
    main()
