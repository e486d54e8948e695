"""Does a model become better by correcting some of its predictions? The whole loop, through the review page's HTTP.

    python studies/correcting.py CASES.csv --work DIR --out FILE.json
        [--first 8] [--correct 4] [--minutes 5] [--method auto] [--threads 1]

A model is trained for so many minutes on the first training cases. It predicts the others, whose landmarks are not
shown to it; of these the worst ones (true error) are corrected: `anatomark review` runs, every true point is saved and
the case called done, as the page does it. Then the review trains for as many minutes, from the model, on the first
cases and the corrected ones, and predicts anew. ``test_*_mm``: mean error on the manifest's test split, ``before`` and
``after``, and ``without``: as many more minutes on the first cases alone. ``difference_mm`` is after minus before, with
its 95 % interval over cases and the signed-rank test's ``p``. ``corrected_*_mm`` is the review's own summary, on points
that training then saw; ``open_*_mm``: the predicted cases that nobody corrected. ``worst_in_front``: how many of the
corrected cases stood as far in front in the queue by suspicion. Look at ``steps`` first: where other programs take the
processor, the minutes hold too few of them to learn anything. DIR is new, or holds the first model of an earlier try.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

import anatomark
import common
from anatomark import InputError, Landmarks
from anatomark.cases.case import Case
from anatomark.evaluation.paired import compare_methods
from anatomark.evaluation.result import EvaluationResult
from anatomark.io.sheets import read_sheet
from manifests import write_table

PERSON = "studies/correcting.py"
HIDDEN = ("landmarks", "split")  # columns of a manifest of images alone
CHILD = "anatomark.benchmark.child"  # the command line, which ends with the process that started it


class Page:
    """What the review page asks of the service at ``url``."""

    def __init__(self, url: str):
        self.url = url.rstrip("/")
        self._open = urllib.request.build_opener(urllib.request.ProxyHandler({})).open

    def ask(self, method: str, path: str, body: object = None, etag: str = "") -> tuple[Any, str]:
        """The answer, and its ETag. Raises InputError with the service's reason."""
        headers = {"content-type": "application/json", **({"if-match": etag} if etag else {})}
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{self.url}/v1{path}", data, headers, method=method)
        try:
            with self._open(request, timeout=600) as answer:
                return json.load(answer), answer.headers["etag"] or ""
        except urllib.error.HTTPError as error:
            raise InputError(f"{method} {path}: {error.code} {error.read().decode(errors='replace')}") from None

    def queue(self) -> list[str]:
        """The cases, the most suspicious first."""
        return [row["id"] for row in self.ask("GET", "/cases?order=suspicion")[0]["cases"]]

    def predicted(self, case: str) -> Landmarks:
        """Where the model of the review puts the case's landmarks."""
        points = self.ask("GET", f"/cases/{quote(case)}/landmarks")[0]["points"]
        ndim = next(len(p["predicted"]) for p in points if p["predicted"])
        return Landmarks(
            tuple(p["name"] for p in points), np.array([p["predicted"] or [np.nan] * ndim for p in points])
        )

    def correct(self, case: str, truth: Landmarks) -> None:
        """Put every true point where it belongs, and finish the case."""
        path = f"/cases/{quote(case)}"
        document, etag = self.ask("GET", f"{path}/landmarks")
        places = dict(zip(truth.names, truth.points.tolist(), strict=True))
        names = [p["name"] for p in document["points"] if np.isfinite(places.get(p["name"], np.nan)).all()]
        points = [{"name": name, "state": "moved", "position": places[name]} for name in names]
        _, etag = self.ask("PUT", f"{path}/landmarks", {"person": PERSON, "points": points}, etag)
        self.ask("POST", f"{path}/done", {"person": PERSON, "confirm_all": False}, etag)

    def train(self, minutes: float) -> Path:
        """Retrain, and wait for it; the new model's run folder, after which all cases are predicted anew. Raises
        InputError where that fails."""
        id = self.ask("POST", "/train", {"minutes": minutes})[0]["id"]
        while True:
            job = self.ask("GET", f"/jobs/{id}")[0]
            if job["state"] not in ("waiting", "running"):
                break
            time.sleep(1)
        if job["state"] != "done":
            raise InputError(f"the training {job['state']}: {job['error']}")
        return Path(self.ask("GET", "/review")[0]["out"]) / "models" / str(job["model"])


def environment(threads: int) -> dict[str, str]:
    """In which commands are those of this process, with so many threads."""
    paths = [str(Path(anatomark.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), "OMP_NUM_THREADS": str(threads)}


@contextmanager
def reviewing(words: Sequence[object], threads: int) -> Iterator[Page]:
    """`anatomark review` with these arguments on a port of its own. Raises InputError where it does not start."""
    command = [sys.executable, "-m", CHILD, "review", *map(str, words), "--no-browser", "--port", "0"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment(threads)
    ) as process:
        try:
            assert process.stdout is not None
            line = next((line for line in process.stdout if line.startswith("anatomark is at ")), "")
            if not line:
                raise InputError(f"{' '.join(command)} ended with exit code {process.wait()}")
            yield Page(line.split()[3])
        finally:
            process.terminate()


def summed(out: Path) -> list[dict[str, Any]]:
    """The review's own summary: of each model, mm to the points that a person placed, the same points for all."""
    command = [sys.executable, "-m", "anatomark", "review", "--summary", "--json", "--out", str(out)]
    said = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True, env=environment(1)).stdout
    rows: list[dict[str, Any]] = json.loads(said)["same_points"]
    return rows


def divided(manifest: Path, first: int, work: Path) -> tuple[Path, Path]:
    """Two manifests in ``work``: the first training cases, and the images alone of the others. Raises InputError."""
    table = read_sheet(manifest)
    rows = [row for _, row in table.rows if row.get("split") == "train"]
    if not 0 < first < len(rows):
        raise InputError(f"{manifest}: has {len(rows)} training cases; --first {first} must leave some of them")
    for row in rows:
        for key in ("image", "landmarks"):
            row[key] = str(manifest.parent.absolute() / row[key])
    bare = [column for column in table.columns if column not in HIDDEN]
    known = [[row[c] for c in table.columns] for row in rows[:first]]
    return (
        write_table(work / "first.csv", table.columns, known),
        write_table(work / "new.csv", bare, [[row[c] for c in bare] for row in rows[first:]]),
    )


def errors(page: Page, cases: Mapping[str, Case]) -> dict[str, float]:
    """Of each case the mean distance from the model's points to the true ones, mm."""
    apart = {id: page.predicted(id).errors_to(case.landmarks) for id, case in cases.items()}
    return {id: float(np.nanmean(mm)) for id, mm in apart.items()}


def main(given: Sequence[str] | None = None) -> None:
    """Train, predict, correct, train, and write the figures."""
    parser = common.arguments(__doc__, "cases")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--first", type=int, default=8, help="training cases of the first model")
    parser.add_argument("--correct", type=int, default=4, help="cases that are corrected")
    parser.add_argument("--minutes", type=float, default=5.0, help="of each training")
    parser.add_argument("--method", default="auto")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args(given)
    work = args.work.absolute()
    run, found, out = work / "run", work / "found", work / "corrected"
    if out.exists():
        raise InputError(f"{out}: was corrected already; choose another --work")
    first, new = divided(args.cases, args.first, work)
    budget = {"minutes": args.minutes, "set": [f"threads={args.threads}"]}
    if not (run / "weights.safetensors").exists():
        anatomark.fit(first, run, method=args.method, resume=run.exists(), **budget)

    truth = {case.id: case for case in common.cases_of(args.cases)}
    hidden = {row["case"]: truth[row["case"]] for _, row in read_sheet(new).rows}
    words = (found, new, "--model", run, "--train-with", first, "--out", out, "--person", PERSON)
    with reviewing(words, args.threads) as page:
        before, queue = errors(page, hidden), page.queue()
        worst = sorted(before, key=lambda id: -before[id])[: args.correct]
        for id in worst:
            page.correct(id, truth[id].landmarks)
        after_run = page.train(args.minutes)
        after = errors(page, hidden)
    corrected = summed(out)
    left = [id for id in hidden if id not in worst]

    figures = {
        "corrected_before_mm": corrected[0]["mean_mm"], "corrected_after_mm": corrected[1]["mean_mm"],
        "open_before_mm": np.mean([before[id] for id in left]) if left else None,
        "open_after_mm": np.mean([after[id] for id in left]) if left else None,
        "worst_in_front": len(set(worst) & set(queue[: len(worst)])),
    }  # fmt: skip
    facts = {"manifest": args.cases.name, "first": args.first, "minutes": args.minutes, "threads": args.threads,
             "method": args.method, "corrected": worst, "queue": queue, "new": before}  # fmt: skip
    tested: dict[str, EvaluationResult] = {}
    taken: dict[str, dict[str, int]] = {}
    for name, model in {"before": run, "after": after_run, "without": work / "without"}.items():
        if name == "without":
            anatomark.fit(first, model, init=run, **budget)
        tested[name] = anatomark.evaluate(
            model, args.cases, work / f"test_{name}", split="test", threads=args.threads, overwrite=True
        )
        taken[name] = steps(model)
        common.record(args.out, figures | compared(tested), **facts, steps=taken, test=by_case(tested))


def steps(run: Path) -> dict[str, int]:
    """The steps that a training took, by stage: on a busy machine minutes hold few of them."""
    return {row["stage"]: int(row["step"]) for _, row in read_sheet(run / "log.csv").rows}


def compared(tested: Mapping[str, EvaluationResult]) -> dict[str, float | None]:
    """The figures of the test split."""
    figures: dict[str, float | None] = {f"test_{name}_mm": r.overall.mre_mm for name, r in tested.items()}
    for pair in compare_methods({name: [r.errors] for name, r in reversed(tested.items())}):
        if (pair.method, pair.against) == ("after", "before"):
            figures |= {"difference_mm": pair.difference_mm, "difference_low_mm": pair.ci_low_mm,
                        "difference_high_mm": pair.ci_high_mm, "p": pair.p}  # fmt: skip
    return figures


def by_case(tested: Mapping[str, EvaluationResult]) -> dict[str, dict[str, float]]:
    """Mean error of each case, mm, by model."""
    return {name: dict(zip(r.errors.cases, map(float, r.errors.case_error), strict=True)) for name, r in tested.items()}


if __name__ == "__main__":
    common.run(main)
