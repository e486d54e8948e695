"""One model from several trainings that started from the same one: the mean of their weights.

    python studies/averaged_weights.py RUN RUN ... --out MODEL

What an average of models gains in one network, no slower than one of them (Wortsman et al., Model soups, ICML 2022). It
holds for trainings whose weights are still near each other: begun with ``--init`` from one model, with the same
settings, the same ``refine.reach_mm`` and the same held-out cases. MODEL is a copy of the first run but for its
weights; radii and flag are that one's: ``anatomark calibrate MODEL CASES.csv --out MODEL2`` learns them anew.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import torch

import common
from anatomark import InputError
from anatomark.model.run_folder import Run, load_run, write_weights


def averaged(runs: Sequence[Run]) -> dict[str, torch.Tensor]:
    """Their mean weights; counters as in the first. Raises InputError where two runs are not of the same network."""
    first = runs[0]
    for run in runs[1:]:
        if run.plan.to_json()["facts"] != first.plan.to_json()["facts"]:
            raise InputError(
                f"{run.folder}: its plan.json is not that of {first.folder}; average the predictions instead"
            )
        if [(n, w.shape) for n, w in run.weights.items()] != [(n, w.shape) for n, w in first.weights.items()]:
            raise InputError(f"{run.folder}: its network is not that of {first.folder}")
        learned = [r.plan.images.learned for r in (first, run) if r.plan.images is not None and r.plan.images.learned]
        if learned[1:] and learned[0] != learned[1]:
            raise InputError(f"{run.folder}: learned from other images than {first.folder}")
    return {
        name: torch.stack([r.weights[name].float() for r in runs]).mean(0) if value.is_floating_point() else value
        for name, value in first.weights.items()
    }


def main(given: Sequence[str] | None = None) -> None:
    """Write the model."""
    parser = common.arguments(__doc__)
    parser.add_argument("runs", nargs="+", metavar="RUN")
    args = parser.parse_args(given)
    runs = [load_run(run) for run in args.runs]
    composed = runs[0].build()
    composed.load_state_dict(averaged(runs))
    out = Path(args.out)
    if out.exists():
        raise InputError(f"{out}: exists already; choose another --out")
    shutil.copytree(runs[0].folder, out, ignore=shutil.ignore_patterns("cache", "weights.safetensors"))
    write_weights(out, composed, half=runs[0].config.weights == "half")
    print(f"model: {out}")


if __name__ == "__main__":
    common.run(main)
