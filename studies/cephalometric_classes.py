r"""Cephalometric measurements and their classes: a model's predictions, and a second observer, against the first.

    python studies/cephalometric_classes.py --manifest CASES.csv --predictions DIR --out F.json \
        [--table T.md] [--plot P.png]

The manifest's test split with the observer that it names (``senior``) is the truth; ``--predictions`` is a folder that
``predict`` or ``evaluate`` wrote. Figures, for ``model`` and ``junior``: ``<who>_<measurement>_success`` (share of the
cases with the truth's class; one that is not measured is a failure), ``..._success_by_class`` (averaged diagonal of
the confusion), ``..._mean_absolute``, ``..._bias``, ``..._sd``, and for the model ``..._coverage90``. Measurements: the
ready definition ``cephalometric-isbi2015``.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np

import common
from anatomark import InputError
from anatomark.cases.find import find_landmarks
from anatomark.io.atomic import write_text
from anatomark.tools.definitions import read_definition
from anatomark.tools.measure.agreement import Agreement, compare
from anatomark.tools.measure.measured import Measured, measure_landmarks
from anatomark.tools.measure.schema import Measurements

FIGURES = ("success", "success_by_class", "mean_absolute", "bias", "sd", "coverage90")
DEFINITION = "cephalometric-isbi2015"
SHOWN = ("SNA", "APDI")  # in the picture


def sides(given: argparse.Namespace, definition: Measurements) -> dict[str, Measured]:
    """Measurements by the truth, the model and the other observer, of the test cases."""
    cases = common.cases_of(given.manifest, "test")
    truth = {c.id: c.landmarks for c in cases}
    predicted = find_landmarks([given.manifest], landmarks=given.predictions, split="test")
    model = {c.id: c.landmarks for c in predicted}
    other = {c.id: c.observers().get(given.other) for c in cases}
    if missing := [c for c, one in other.items() if one is None]:
        raise InputError(f"{given.manifest}: observer {given.other!r} did not mark case {missing[0]!r}")
    return {
        k: measure_landmarks(v, definition) for k, v in {"truth": truth, "model": model, given.other: other}.items()
    }


def markdown(agreements: dict[str, list[Agreement]]) -> str:
    """The table for the documentation; cells hold the model's figure, then the other observer's."""
    head = (
        "same class",
        "averaged over the classes",
        "mean absolute difference",
        "bias",
        "model: in the 90 % interval",
    )
    lines = [f"| {' / '.join(agreements)} | {' | '.join(head)} |", "|---" * 6 + "|"]
    for pair in zip(*agreements.values(), strict=True):
        name, unit = pair[0].measurement, "" if pair[0].unit == "1" else f" {pair[0].unit}"
        form = ".3f" if unit == "" else ".2f"
        cells = [" / ".join(f"{getattr(a, k):.1%}".replace("%", " %") for a in pair) for k in FIGURES[:2]]
        both = [[round(getattr(a, k), 3) + 0.0 for a in pair] for k in ("mean_absolute", "bias")]  # never -0.000
        cells += [" / ".join(f"{v:{form}}" for v in values) + unit for values in both]
        covered = "-" if pair[0].coverage90 is None else f"{100 * pair[0].coverage90:.0f} %"
        lines.append(f"| {name} | {' | '.join(cells)} | {covered} |")
    means = [[100 * np.mean([getattr(a, k) for a in one]) for one in agreements.values()] for k in FIGURES[:2]]
    lines.append(f"| mean | {' | '.join(' / '.join(f'{m:.1f} %' for m in one) for one in means)} | | | |")
    return "\n".join(lines) + "\n"


def plot(measured: dict[str, Measured], file: Path) -> None:
    """Bland and Altman's picture: differences over means, for the model and the other observer."""
    from matplotlib import pyplot

    truth, *others = measured.values()
    figure, axes = pyplot.subplots(len(SHOWN), 2, figsize=(7.2, 5.2), sharex="row", sharey="row", layout="constrained")
    for row, name in zip(axes, SHOWN, strict=True):
        k = truth.names.index(name)
        for cell, who, other in zip(row, list(measured)[1:], others, strict=True):
            d = other.values[:, k] - truth.values[:, k]
            bias, spread = np.nanmean(d), 1.96 * np.nanstd(d, ddof=1)
            cell.plot((other.values[:, k] + truth.values[:, k]) / 2, d, ".", ms=4, alpha=0.6)
            cell.axhline(0, color="0.7", lw=0.8)
            for y, style in ((bias, "-"), (bias - spread, "--"), (bias + spread, "--")):
                cell.axhline(y, color="C3", ls=style, lw=1)
            cell.set_title(f"{name}: {who} - senior, {bias:+.1f} ± {spread:.1f} deg", fontsize=9)
    for cell in axes[-1]:
        cell.set_xlabel("mean of both, deg")
    for row in axes:
        row[0].set_ylabel("difference, deg")
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=90)


def main(given: Sequence[str] | None = None) -> None:
    """Measure and write figures, table and picture."""
    parser = common.arguments(__doc__)
    parser.add_argument("--manifest", type=Path, required=True)
    parser.add_argument("--predictions", type=Path, required=True)
    parser.add_argument("--other", default="junior", help="the observer to hold the model against")
    parser.add_argument("--table", type=Path)
    parser.add_argument("--plot", type=Path)
    args = parser.parse_args(given)
    measured = sides(args, read_definition(DEFINITION, Measurements, "measurements"))
    truth, *others = measured.values()
    agreements = {who: compare(one, truth) for who, one in zip(list(measured)[1:], others, strict=True)}
    figures: dict[str, float | None] = {"cases": len(truth.cases)}
    figures |= {f"truth_{name}_mean": np.nanmean(truth.values[:, k]) for k, name in enumerate(truth.names)}
    for who, one in agreements.items():
        figures |= {f"{who}_{a.measurement}_{f}": v for a in one for f in FIGURES if (v := getattr(a, f)) is not None}
    common.record(args.out, figures)
    if args.table:
        write_text(args.table, markdown(agreements))
    if args.plot:
        plot(measured, args.plot)
    print(markdown(agreements))


if __name__ == "__main__":
    common.run(main)
