"""The contract of methods, over every method, preset and composition, or over ``--method``; see ``suite.py``."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch

from anatomark import methods
from anatomark.core.alignment import Alignment
from anatomark.core.image import Image
from anatomark.errors import InputError
from anatomark.methods.kit.precision import use_bf16
from anatomark.model.align.aligner import Aligner
from contract.subject import COMPOSITIONS, Subject, resumed_as_uninterrupted
from contract.suite import CHECKS, checks_of

FRAME = ["warped_copies=20"]  # of a mean shape
OF_PIN = (  # two small levels, one of each kind
    "levels=[{px: 16, width: 8, spacing: 0.08, update: shape, rotation_deg: 6, shift: 0.04, log_scale: 0.05,"
    " reach: 0.0001}, {px: 16, width: 8, spacing: 0.04, rotation_deg: 4, shift: 0.01, log_scale: 0.03, reach: 0.0001}]"
)
CLASSIC = "widths=[4, 4, 4, 8]"


Texts = tuple[str, ...]
Key = tuple[str, str, int, str]  # method, preset, dimension, composition


@dataclass(frozen=True)
class Row:
    """How a preset is made small. ``same_as``: another preset whose class and code it shares, so that it is run alone,
    not in every composition."""

    settings: tuple[str, ...]
    in_2d: tuple[str, ...] = ()
    in_3d: tuple[str, ...] = ()
    same_as: str = ""
    untrained: tuple[str, ...] = ()
    mixing: tuple[str, ...] = ()
    reordered: bool = True
    placed: bool = False
    skipped: dict[int, str] = field(default_factory=dict)  # why it is not run in a dimension


GLOBAL = Row(
    ("spacing_mm=2.0", "pools=[true, false, false, false]", "crop_px=24", CLASSIC, "blocks=[1, 1, 1, 1]",
     "local_widths=[4, 8]"),
)  # fmt: skip
TABLE: dict[str, dict[str, Row]] = {
    "pin": {
        "recommended": Row(("context_px=16", OF_PIN, "starts=2", *FRAME)),
        # its network speaks of shape parameters, whose signs and number go with the order
        "paper": Row(("patch_px=12", "iterations=2", "spacing_mm=2.5"), mixing=("pin.*",), reordered=False),
        "paper-single": Row(("patch_px=12", "iterations=2", "spacing_mm=2.5", "starts=2"), same_as="paper",
                            skipped={3: "only the number of planes differs from 2D"}),
    },
    "global_to_local": {
        "recommended": Row(("block_px=16", "width=4", "starts=3", "hypotheses=2", *FRAME)),
        "paper": GLOBAL,
        **{f"paper-{name}": Row(GLOBAL.settings, same_as="paper", skipped={d: f"{name} is {5 - d}D"})
           for name, d in (("cephalogram", 3), ("ccta", 2), ("olfactory-mr", 2))},
    },
    "t2dl": {
        "recommended": Row(
            ("cells=3", "maps=[4, 8]", "narrow=8", "hidden=16", "rank=4", "looks=2", "passes=2", *FRAME),
            in_3d=("settle=false",),  # drawing a case onto the mean picture takes long
            mixing=("joint.*",),
        ),
        "paper": Row(("spacing_mm=1.5", "maps=[4, 6, 8]", "hidden=8", "rank=4", "patches=2", "augment=1"),
                     mixing=("joint.*",), placed=True),
    },
    "heatmap": {
        "recommended": Row(("px=24", "maps=[4, 8]", "stem=1", "looks=2", *FRAME), untrained=("log_sigma",)),
        "scn": Row(("px=24", "maps=[4, 8]", "stem=1", "looks=2", "spatial=4", "learn_sigma=true", *FRAME),
                   same_as="recommended", mixing=("heatmaps.*",)),
        "tree": Row(("px=24", "maps=[4, 8]", "stem=1", "looks=2", *FRAME), same_as="recommended",
                    untrained=("log_sigma",)),
    },
    "dqn": {
        "recommended": Row(("voxels=16", "patch_px=9", "layers=[[4, 3], [8, 3]]", "hidden=8", "narrow=4", "starts=2",
                            "most_moves=6", "moves=3", "starts_apart=0")),
        "paper": Row(("voxels=16", "patch_px=12", "layers=[[4, 5], [8, 3]]", "hidden=8", "narrow=4", "starts=2",
                      "most_moves=6", "moves=3", "starts_apart=0"), same_as="recommended"),
    },
}  # fmt: skip


ALIGNMENTS: dict[Any, Alignment] = {}

# one that averages weights, one that collects batches, one of two stages
RESUMED: list[Key] = [
    ("heatmap", "recommended", 2, "both"),
    ("dqn", "recommended", 2, "plain"),
    ("t2dl", "recommended", 2, "refined"),
]


@pytest.fixture(autouse=True)
def float32() -> Iterator[None]:
    """Plain convolutions on one thread, so that to the bit is to the bit."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    use_bf16(False)
    yield
    use_bf16(None)
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def one_search(monkeypatch: pytest.MonkeyPatch) -> None:
    """An image is aligned to a template once, whichever method comes behind: the search takes longer than all else."""
    search = Aligner.align

    def align(self: Aligner, image: Image) -> Alignment:
        arrays = self.template.array, image.array, image.grid.affine
        key = (self.config.model_dump_json(), *(a.tobytes() for a in arrays))
        if key not in ALIGNMENTS:
            ALIGNMENTS[key] = search(self, image)
        return ALIGNMENTS[key]

    monkeypatch.setattr(Aligner, "align", align)


def test_every_preset_of_this_package_is_in_the_table() -> None:
    assert {name: list(rows) for name, rows in TABLE.items()} == {n: methods.presets(n) for n in methods._OURS}


def reason_to_skip(row: Row, preset: str, ndim: int, composition: str) -> str:
    if ndim in row.skipped:
        return row.skipped[ndim]
    if row.same_as and composition != "plain":
        return f"{preset} differs from {row.same_as} in settings alone"
    if ndim == 3 and composition in ("aligned", "refined"):
        return "in 3D both are there together"
    return ""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    keys = [(m, p, d, c) for m, rows in TABLE.items() for p in rows for d in (2, 3) for c in COMPOSITIONS]
    resumed = RESUMED
    if outside := metafunc.config.getoption("method", default=None):
        methods.add("outside", outside)
        presets = methods.presets("outside")
        keys = [("outside", p, d, c) for p in presets for d in (2, 3) for c in COMPOSITIONS]
        resumed = [("outside", presets[0], d, "both") for d in (2, 3)]
    given = [tuple(getattr(metafunc.config.option, n, None) or ()) for n in ("contract_set", "untrained", "mixing")]
    if "check" in metafunc.fixturenames:
        metafunc.parametrize(("subject", "check"), [case for key in keys for case in _cases(key, given)])
    elif "subject" in metafunc.fixturenames:
        metafunc.parametrize("subject", [pytest.param((k, *given), id=_name(k)) for k in resumed])


def _name(key: Key) -> str:
    return f"{key[0]}-{key[1]}-{key[2]}d-{key[3]}"


def _cases(key: Key, given: list[Texts]) -> list[Any]:
    """The checks of one subject; or one that is skipped."""
    row = TABLE[key[0]][key[1]] if key[0] in TABLE else None
    if row is not None and (reason := reason_to_skip(row, key[1], key[2], key[3])):
        return [pytest.param(key, "", id=_name(key), marks=pytest.mark.skip(reason=reason))]
    return [pytest.param((key, *given), check, id=f"{_name(key)}-{check}") for check in checks_of(key[3])]


@lru_cache(maxsize=1)
def made(key: Key, given: Texts, untrained: Texts, mixing: Texts) -> Subject:
    """The subject, the same for all checks of it; skipped where another package's method does not want its data."""
    method, preset, ndim, composition = key
    if method in TABLE:
        row = TABLE[method][preset]
        own = [f"method.{x}" for x in (*row.settings, *(row.in_2d if ndim == 2 else row.in_3d))]
        return Subject(method, preset, ndim, composition, own, row.untrained, row.mixing, row.reordered, row.placed)
    subject = Subject(method, preset, ndim, composition, given, untrained, mixing)
    try:
        _ = subject.plan
    except InputError as error:
        pytest.skip(str(error))
    return subject


def test_contract(subject: tuple[Key, Texts, Texts, Texts], check: str) -> None:
    CHECKS[check](made(*subject))


def test_resumed_is_uninterrupted(subject: tuple[Key, Texts, Texts, Texts], tmp_path: Path) -> None:
    resumed_as_uninterrupted(made(*subject), tmp_path, steps=9, stops=(2, 7))
