"""``anatomark plan``: look at the data, say what stands out, suggest a config."""

from __future__ import annotations

import io
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console, Group

from anatomark.cases.division import HELD_OUT_FROM
from anatomark.cases.look.fingerprint import fingerprint
from anatomark.cases.look.simulated import simulated_note
from anatomark.cases.manifests import Manifests, paths_of, read_manifests
from anatomark.errors import InputError, check_range, counted, listed
from anatomark.io.atomic import read_json, read_text, write_json, write_text
from anatomark.io.claim import Claim, claimed
from anatomark.model.config import (
    AUTO,
    MOST_MINUTES,
    RunConfig,
    checked,
    completed,
    merged,
    read_config,
    write_config,
)
from anatomark.progress import Reporter
from anatomark.training.auto import ANY_POSE_DEG, Choice, Row, applied, choose, task_of_fingerprint, usual_minutes
from anatomark.training.plan_page import TITLE, numbers, page, what_next

SCHEMA, REPORT, SUSPECTS = 1, "plan_report.json", "plan_suspects.html"
WIDTH = 110
MODALITIES = {
    "ct": "air lies near -1000, as in Hounsfield units, so one window serves all images; set it where this is wrong",
    "image": "a name, to be changed at will: the values have no fixed scale, so each image has its own percentiles",
}


@dataclass(frozen=True)
class Planned:
    """The outcome of :func:`plan`: ``facts`` (plain JSON, what ``plan_report.json`` holds) and the ``config``."""

    facts: dict[str, Any]
    config: RunConfig

    def summary(self) -> dict[str, Any]:
        return self.facts

    def lines(self) -> list[str]:
        """A readable page of the facts."""
        console = Console(file=io.StringIO(), width=WIDTH, color_system=None, markup=False, emoji=False)
        with console.capture() as shown:
            console.print(Group(*page(self.facts)))
        return [*(line.rstrip() for line in shown.get().splitlines()), "", *what_next(self.facts)]


def plan(
    manifest_path: Manifests,
    out: str | os.PathLike[str] | None = None,
    *,
    method: str = AUTO,
    preset: str = "recommended",
    minutes: float | None = None,
    frame: str | None = None,
    unit: str | None = None,
    report: Reporter | None = None,
) -> Planned:
    """Fingerprint of the training cases of a manifest, or of several (:func:`read_manifests`), suspect annotations, and
    a config for ``fit``, each choice with its reason.

    ``out``: a folder for ``config.yaml``, ``plan_report.json`` and, where annotations are suspect, pictures of them in
    ``plan_suspects.html``; or the config's own name (``*.yaml``); None writes nothing. What is there is replaced where
    it is as an earlier plan wrote it. ``method``: by default the one that suits (``auto.py``), given ``minutes`` of
    training or a usual time. ``frame`` and ``unit`` as in ``read_landmarks``; ``report`` shows how far it is. Raises
    InputError for anything wrong with the manifest, and where the config or the page is there as somebody else's.
    """
    if minutes is not None:
        check_range("minutes", minutes, 0, MOST_MINUTES, above=True)
    if out is None:
        return _planned(manifest_path, None, minutes, method, preset, frame, unit, report)
    place = Path(out)
    target = place if place.suffix.lower() in (".yaml", ".yml") else place / "config.yaml"
    with claimed(target, beside=True) as claim:
        _check_target(target, claim)
        return _planned(manifest_path, target, minutes, method, preset, frame, unit, report)


def _check_target(target: Path, claim: Claim) -> None:
    """Raises InputError where ``target``, or the page of suspects, is there, but not as an earlier plan wrote it."""
    page = target.with_name(REPORT)
    try:
        made = read_json(page)["config"] if page.exists() else None
        ours = made is not None and checked(RunConfig, made, str(page)) == read_config(target)
    except (InputError, KeyError, TypeError):
        ours = False
    drawn = target.with_name(SUSPECTS)
    strange = [target] if os.path.lexists(target) and not ours and not claim.unfinished(target) else []
    if os.path.lexists(drawn) and not (drawn.is_file() and read_text(drawn).startswith(TITLE)):
        strange.append(drawn)
    if strange:
        raise InputError(f"{strange[0]}: exists already and is not as plan wrote it; remove it or choose another `out`")


def _planned(
    manifests: Manifests,
    target: Path | None,
    minutes: float | None,
    method: str,
    preset: str,
    frame: str | None,
    unit: str | None,
    report: Reporter | None,
) -> Planned:
    paths = [*map(str, paths_of(manifests))]
    where = " + ".join(paths)
    report = report or Reporter(quiet=True)
    report.say(f"reading {where}")
    manifest = read_manifests(manifests, frame=frame, unit=unit, unlabelled=True)
    seen = fingerprint(manifest, report)
    facts = {"schema": SCHEMA, "manifest": where, "manifests": paths, **seen}
    others: list[Row] = [
        ("modality", facts["modality"], MODALITIES[facts["modality"]]),
        ("landmarks", *_wanted(facts)),
        ("val_fraction", 0.2, _why_validation(facts["cases"])),
        ("cache_mb", *_cache(facts["images"]["megabytes"])),
    ]
    given = {key: value for key, value, _ in others}
    time, why = minutes, "as asked"
    if time is None:
        time, why = usual_minutes(facts["cases"]["train"], facts["dimension"])
    if method == AUTO:
        rows = choose(task_of_fingerprint(seen, len(given["landmarks"] or seen["names"])), time).rows
    else:
        rows = (("method.name", method, f"preset {preset}; {_pose(facts)}"), ("method.preset", preset, "as asked"))
    choice = Choice((*rows, ("minutes", time, why)))
    if method == AUTO:
        config = applied(checked(RunConfig, given, where), choice)
    else:
        config = completed(checked(RunConfig, merged(given, choice.settings), where))
    facts |= {
        "cautions": [*manifest.notes, *filter(None, [simulated_note(manifest.annotated)]), *_cautions(facts)],
        "suggestions": [{"key": k, "value": v, "reason": r} for k, v, r in (*choice.rows, *others)],
        "config": config.model_dump(mode="json"),
        "files": [],
    }
    if target is not None:
        page, drawn = target.with_name(REPORT), target.with_name(SUSPECTS)
        facts["files"] = [str(target), str(page)]
        pictures = ""
        if facts["suspects"]:
            from anatomark.training.suspects_page import suspects_page  # matplotlib, which few plans need

            pictures = suspects_page(facts, manifest.cases, report)
            facts["files"].append(str(drawn))
        write_config(target, config)
        write_json(page, facts)
        if pictures:
            write_text(drawn, pictures)
        else:
            drawn.unlink(missing_ok=True)  # of an earlier plan
    return Planned(facts, config)


# ---------------------------------------------------------------------- reasons


def _pose(facts: Mapping[str, Any]) -> str:
    """How a method that seeks the pose itself takes what the training cases show."""
    turned = facts["poses"]["rotation_deg"]["max"]
    if facts["cases"]["train"] < 2:
        return "with one training case the spread of poses is unknown"
    if turned > ANY_POSE_DEG:
        return f"cases are turned by up to {turned:.0f} degrees, so the pose is sought over all rotations"
    return f"cases are turned by up to {turned:.0f} degrees, which the method widens by half"


def _wanted(facts: Mapping[str, Any]) -> tuple[list[str] | None, str]:
    """The landmarks to learn: all, unless some were never marked or cases differ in names."""
    rows, extra = facts["landmarks"], facts["extra_names"]
    never = [row["name"] for row in rows if row["defined"] == 0]
    if not never and not extra:
        return None, f"all {len(rows)} landmarks of the first training case"
    kept = [row["name"] for row in rows if row["defined"]]
    parts = [f"never marked: {listed(never)}"] if never else []
    parts += [f"not in the first training case: {listed(extra)}"] if extra else []
    return kept, "; ".join(parts) + "; these are left out"


def _why_validation(cases: Mapping[str, int]) -> str:
    if cases["val"]:
        return f"not used: the manifest has {counted(cases['val'], 'validation case')}"
    if cases["train"] < HELD_OUT_FROM:
        return "not used, too few cases to spare one: validated on augmented copies, so no independent validation"
    held = max(1, round(0.2 * cases["train"]))
    folds = "" if cases["without landmarks"] else "; `folds` K would use all of them"
    return f"{held} of {cases['train']} training cases are held out{folds}"


def _cache(megabytes: float) -> tuple[int, str]:
    try:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**20
    except (ValueError, OSError, AttributeError):  # not every system tells
        memory = 8192.0
    wanted, most = 256 * math.ceil(max(512.0, 1.5 * megabytes) / 256), int(max(512.0, memory / 4))
    if wanted <= most:
        return wanted, f"all training images together take {megabytes:.0f} MB as float32"
    return most, f"a quarter of this machine's memory; the images take {megabytes:.0f} MB and are read by parts"


def _cautions(facts: Mapping[str, Any]) -> Iterator[str]:
    """What a person should know before training, a sentence each."""
    images, rows = facts["images"], facts["landmarks"]
    if blank := facts["cases"]["without landmarks"]:
        yield (
            f"{counted(blank, 'training image')} without landmarks: to be learned from with a `teacher`, such as a "
            "model made from the others; without one, blank the split there"
        )
    yield from images["odd_sizes"]
    span = 2 * facts["poses"]["radius_mm"]
    if len(rows) > 1 and not 0.1 <= span <= 4000:
        yield f"the landmarks span about {span:.3g} mm: check spacing and unit"
    if outside := [f"{r['name']} ({r['outside']})" for r in rows if r["outside"]]:
        yield f"landmarks outside their image, with the number of cases: {listed(outside)}"
    if few := [f"{r['name']} ({r['defined']})" for r in rows if 0 < r["defined"] < 0.5 * facts["cases"]["train"]]:
        yield f"landmarks marked in fewer than half of the cases: {listed(few)}"
    if images["anisotropy"] > 3:
        yield f"voxels are up to {images['anisotropy']:.1f} times longer than wide; expect larger errors that way"
    low, high = images["spacing_mm"]["min"], images["spacing_mm"]["max"]
    if any(h > 2 * a for a, h in zip(low, high, strict=True)):
        yield f"spacings differ between cases: {numbers(low)} to {numbers(high)} mm"
    if oblique := sum(n for code, n in images["orientations"].items() if code.endswith("oblique")):
        yield f"{oblique} images lie obliquely in world; that is handled, but check that their landmarks do too"
    if facts["suspects_note"]:
        yield facts["suspects_note"]
