"""Run folders on disk: nothing in them executes code when loaded."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save as save_tensors

import anatomark
from anatomark.errors import InputError, nearest
from anatomark.io.atomic import atomic_path, read_bytes, read_json, read_text, write_bytes
from anatomark.io.files import check_regular
from anatomark.model.compose import METHOD, REFINE, Composed, Composition, Plan
from anatomark.model.confidence.calibration import CalibrationFacts
from anatomark.model.confidence.review import REFERENCE, Review, read_review
from anatomark.model.config import RunConfig, checked, method_of, read_config
from anatomark.model.run_files import check_list, write_list
from anatomark.model.tensors import read_tensors

CHECKPOINT, CHECKPOINT_VERSION = "last.ckpt", 3
WEIGHTS = "weights.safetensors"
HOLDS = f"a run folder holds config.yaml, plan.json and {WEIGHTS}"
MOST_WEIGHTS = 2**32  # bytes
LARGEST_WEIGHT = 1e6  # a tensor that holds more is damaged; in trained models most are below 1, variances below 1e4
# what building a module from settings, facts and tensors that contradict each other ends in
MISFITS = (RuntimeError, KeyError, ValueError, TypeError, IndexError, AttributeError, AssertionError, ArithmeticError)
_PICKLES = (".pt", ".pth", ".bin", ".pkl", ".pickle", ".ckpt")


@dataclass(frozen=True)
class Run:
    """A trained model as it lies on disk. ``hash`` changes with anything that changes its predictions."""

    folder: Path
    config: RunConfig
    plan: Plan
    weights: dict[str, torch.Tensor]  # named as those of ``Composed``
    calibration: dict[str, Any]
    review: Review | None
    hash: str

    @property
    def licence(self) -> str:
        """What the weights may be used for: the first paragraph of the folder's ``LICENSE.txt``, else what its config
        says; empty where neither says anything."""
        note = self.folder / "LICENSE.txt"
        if note.exists():
            return " ".join(read_text(note).split("\n\n")[0].split())
        return self.config.license if self.config.license != RunConfig().license else ""

    def build(self) -> Composed:
        """The model with its weights, in eval mode on the CPU. Raises InputError where the files do not fit."""
        try:
            composed = Composition.of(self.config).build(self.plan)
            own = composed.state_dict()
            for name in own.keys() & self.weights.keys():
                if own[name].is_floating_point() != self.weights[name].is_floating_point():
                    raise ValueError(f"{name} is of type {self.weights[name].dtype}")
            composed.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in self.weights.items()})
        except MISFITS as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[-1].strip()
            raise InputError(f"{self.folder}: {WEIGHTS} does not fit config.yaml and plan.json: {reason}") from None
        return composed.eval().requires_grad_(False)


def zoo_folder() -> Path:
    """Where the bundled models lie."""
    return Path(anatomark.__file__).parent / "zoo"


def list_zoo() -> dict[str, Path]:
    """The bundled models' folders by name."""
    return {p.name: p for p in sorted(zoo_folder().glob("*")) if (p / WEIGHTS).exists()}


def find_run(model: str | os.PathLike[str]) -> Path:
    """The run folder of a path or a zoo name; a folder of that path comes first. Raises InputError."""
    path = Path(model)
    if path.is_dir():
        return path
    zoo = list_zoo()
    known = ", ".join(zoo) or "none bundled"
    if str(model) in zoo:
        return zoo[str(model)]
    if path.exists():
        raise InputError(f"{path}: is a file; a model is a run folder or a zoo name ({known})")
    if "+" in str(model):
        raise InputError(f"{model}: one model is needed here; several joined by + are for predict and evaluate")
    hint = nearest(str(model), list(zoo)) or f"; zoo names: {known}"
    raise InputError(f"{model}: no such run folder or zoo model{hint}")


def load_run(model: str | os.PathLike[str]) -> Run:
    """Read a run folder or a zoo model. Raises InputError where a file is missing, damaged, changed since then
    (``run_files.py``), or of another kind, and where two of them contradict each other."""
    if not isinstance(model, str | os.PathLike):
        raise InputError(f"give a model as its run folder or its name, not as {type(model).__name__}")
    folder = find_run(model)
    if not (folder / WEIGHTS).exists():
        strange = sorted(p.name for p in folder.iterdir() if p.suffix in _PICKLES and p.name != CHECKPOINT)
        if strange:
            raise InputError(f"{folder}: {strange[0]} may run code when it is loaded and is not read; {HOLDS}")
        unfinished = (folder / "config.yaml").exists()
        remedy = "its training is not finished, go on with fit `resume`" if unfinished else HOLDS
        raise InputError(f"{folder}: has no {WEIGHTS}; {remedy}")
    for name in ("config.yaml", "plan.json"):
        if not (folder / name).exists():
            raise InputError(f"{folder}: has no {name}; {HOLDS}")
    data = _bytes(folder / WEIGHTS)
    if _pickled(data):
        raise InputError(
            f"{folder / WEIGHTS}: is not a safetensors file: it looks like a pickle, which may run code and is never "
            "loaded"
        )
    check_list(folder)
    config = read_config(folder / "config.yaml")
    plan = read_plan(folder, config)
    weights = read_tensors(folder / WEIGHTS, data, LARGEST_WEIGHT)
    for name, value in weights.items():
        if name.endswith("running_var") and bool((value < 0).any()):
            raise InputError(f"{folder / WEIGHTS}: {name} holds a variance below 0")
    calibration = _calibration(folder, plan)
    review, reference = read_review(folder, plan.names, plan.ndim, calibration)
    key = _hash(data + reference, config, plan, calibration)
    if not all(name.startswith((f"{METHOD}.", f"{REFINE}.")) for name in weights):  # earlier runs of a method alone
        weights = {f"{METHOD}.{name}": value for name, value in weights.items()}
    return Run(folder, config, plan, weights, calibration, review, key)


def _calibration(folder: Path, plan: Plan) -> dict[str, Any]:
    """What ``calibration.json`` holds, checked; nothing where there is none. Raises InputError."""
    path = folder / "calibration.json"
    if not path.exists():
        if (folder / REFERENCE).exists():
            raise InputError(f"{folder}: has no {path.name}, to which {REFERENCE} belongs; copy the folder again")
        return {}
    data: dict[str, Any] = read_json(path)
    checked(CalibrationFacts, data, str(path)).check_names(plan.names, str(path))
    return data


def read_plan(folder: Path, config: RunConfig) -> Plan:
    """``plan.json`` of a run folder. Raises InputError."""
    path = folder / "plan.json"
    return Plan.from_json(read_json(path), method_of(config)[0], str(path))


def _bytes(path: Path) -> bytes:
    check_regular(path)
    return read_bytes(path, MOST_WEIGHTS)


def _pickled(data: bytes) -> bool:
    return data[:2] == b"PK" or (data[:1] == b"\x80" and data[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"))


def _hash(data: bytes, config: RunConfig, plan: Plan, calibration: dict[str, Any]) -> str:
    settings = [config.method.model_dump(mode="json"), config.precision]
    settings += [config.refine.model_dump(mode="json")] if plan.refine is not None else []
    settings += [config.align.model_dump(mode="json")] if plan.align is not None else []
    facts = {k: v for k, v in plan.to_json().items() if k != "images"}  # these judge an image, and place nothing
    text = json.dumps([*settings, facts, calibration], sort_keys=True)
    return hashlib.sha256(data + text.encode()).hexdigest()[:16]


def write_weights(folder: Path, composed: Composed, *, half: bool = False) -> None:
    """Write ``weights.safetensors``: float32, or half precision, and before it the list of all files, so that a run is
    listed when it counts as finished. Raises InputError where the disk refuses."""
    wanted = torch.float16 if half else torch.float32
    tensors = {}
    for name, value in composed.state_dict().items():
        value = value.detach().cpu()
        tensors[name] = (value.to(wanted) if value.dtype == torch.float32 else value).clone().contiguous()
    data = save_tensors(tensors)
    write_list(folder, {WEIGHTS: data})
    write_bytes(folder / WEIGHTS, data)


def write_checkpoint(folder: Path, data: dict[str, Any]) -> None:
    """Write ``last.ckpt`` atomically: tensors, numbers and strings only. Raises InputError where the disk refuses."""
    with atomic_path(folder / CHECKPOINT) as temporary, open(temporary, "wb") as file:
        try:
            torch.save(data, file)
        except RuntimeError as error:  # torch's writer turns a failed write into one
            raise OSError(None, "the disk is full or the write failed") from error


def read_checkpoint(folder: Path) -> dict[str, Any]:
    """``last.ckpt``, on the CPU, without running any code. Raises InputError where it is damaged."""
    path = folder / CHECKPOINT
    try:
        data: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError, OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"{path}: is no checkpoint of this program ({reason}); remove it to start anew") from None
    if data.get("version") != CHECKPOINT_VERSION:
        raise InputError(
            f"{path}: is a checkpoint of version {data.get('version')!r}, this program reads version "
            f"{CHECKPOINT_VERSION}; finish the run with the version that began it, or choose another `out`"
        )
    return data
