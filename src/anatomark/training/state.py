"""Everything that changes while a run trains, its log and its checkpoints."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from anatomark.cases.store import CaseStore
from anatomark.io.atomic import write_json
from anatomark.io.sheets import write_csv
from anatomark.methods.base import Evidence, Stage
from anatomark.model.compose import Composed
from anatomark.model.config import RunConfig, write_config
from anatomark.model.run_folder import CHECKPOINT_VERSION, read_checkpoint, write_checkpoint
from anatomark.progress import Reporter
from anatomark.training.optimise import make_optimizer, rate_factor
from anatomark.training.validate import Validation, from_plain, to_plain


@dataclass
class State:
    """A training under way: what is trained, and how far it is."""

    run: Path
    config: RunConfig
    method: Composed
    device: torch.device
    stages: list[Stage]
    store: CaseStore
    validation: Validation
    report: Reporter
    taught: bool = False  # by a teacher, whose points are drawn
    at: int = 0  # stage
    step: int = 0  # steps done in this stage
    optimizer: Any = None
    ema: dict[str, torch.Tensor] | None = None
    best: dict[str, torch.Tensor] | None = None
    best_mm: float = float("inf")
    best_evidence: Evidence = field(default_factory=Evidence)  # that the best weights gave
    evidence: Evidence = field(default_factory=Evidence)
    reached_mm: float = float("inf")  # validation error of the weights kept by the stage before
    initial_mm: float | None = None  # of the weights that another run gave
    before: Mapping[str, Evidence] = field(default_factory=dict)  # out-of-fold evidence by stage: counts first
    rows: list[dict[str, Any]] = field(default_factory=list)
    step_s: float = 0.0  # seconds that a step was measured to take, of the slowest stage so far
    advised: int = 0  # minutes that a training of so few steps was told to take
    spent: float = 0.0  # seconds of the sittings before this one
    started: float = field(default_factory=time.monotonic)
    saved: float = field(default_factory=time.monotonic)

    @property
    def stage(self) -> Stage:
        return self.stages[self.at]

    @property
    def seconds(self) -> float:
        """Seconds of training so far, over all sittings."""
        return self.spent + time.monotonic() - self.started


def write_setup(state: State) -> None:
    """Write ``config.yaml`` with the steps fixed so far, and ``plan.json``."""
    if state.config.minutes is None:
        state.config.stage_steps.update({s.name: s.steps for s in state.stages})
    write_config(state.run / "config.yaml", state.config)
    write_json(state.run / "plan.json", state.method.plan.to_json())


def log(state: State, mean: Mapping[str, float], mm: float | None) -> None:
    """Add a row to ``log.csv``: mean losses since the last one (none before the first step), and the validation error
    where there is one."""
    parts = " ".join(f"{k}={v:.5g}" for k, v in mean.items() if k != "loss")
    row = {
        "stage": state.stage.name,
        "step": state.step,
        "loss": f"{mean['loss']:.6g}" if mean else "",
        "val_mm": "" if mm is None else f"{mm:.4f}",
        "lr": f"{state.stage.lr * rate_factor(state.stage, max(0, state.step - 1)):.4g}",
        "seconds": f"{state.seconds:.1f}",
        "parts": parts,
    }
    state.rows.append(row)
    write_csv(state.run / "log.csv", state.rows)


def save(state: State) -> None:
    """Write ``last.ckpt``, from which the training goes on."""
    data = {
        "version": CHECKPOINT_VERSION,
        "stage": state.at,
        "step": state.step,
        "model": state.method.state_dict(),
        "optimizer": state.optimizer.state_dict() if state.optimizer is not None else None,
        "ema": state.ema,
        "best": state.best,
        "best_mm": state.best_mm,
        "evidence": to_plain(state.evidence),
        "reached_mm": state.reached_mm,
        "initial_mm": state.initial_mm,
        "best_evidence": to_plain(state.best_evidence),
        "seconds": state.seconds,
        "rows": state.rows,
    }
    write_checkpoint(state.run, data)
    state.saved = time.monotonic()


def restore(state: State) -> None:
    """Bring a fresh state to where the run's last checkpoint was taken."""
    data = read_checkpoint(state.run)
    state.at, state.step, state.rows = data["stage"], data["step"], data["rows"]
    state.method.load_state_dict(data["model"])
    for name in ("ema", "best"):
        kept = data[name]
        setattr(state, name, None if kept is None else {k: v.to(state.device) for k, v in kept.items()})
    state.best_mm = data["best_mm"]
    state.reached_mm, state.initial_mm = data["reached_mm"], data["initial_mm"]
    state.evidence, state.best_evidence = from_plain(data["evidence"]), from_plain(data["best_evidence"])
    state.spent = data["seconds"]
    if data["optimizer"] is not None:
        state.optimizer = make_optimizer(state.method, state.stage)
        state.optimizer.load_state_dict(data["optimizer"])
    where = f"stage {state.stage.name}, step {state.step}" if state.at < len(state.stages) else "the end of training"
    state.report.say(f"resuming {state.run} at {where}")
