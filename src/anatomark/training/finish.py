"""What a run leaves behind when its training is done: weights, plan, calibration, card."""

from __future__ import annotations

from anatomark.cases.division import Division
from anatomark.io.atomic import write_json, write_text
from anatomark.model.confidence.review import write_reference
from anatomark.model.config import write_config
from anatomark.model.residuals import Residuals
from anatomark.model.run_folder import write_weights
from anatomark.training.calibrate import learn_confidence
from anatomark.training.card import card
from anatomark.training.state import State


def finish(state: State, division: Division, residuals: Residuals | None, out_of_fold: Residuals | None) -> None:
    """Write the finished run's files; ``weights.safetensors`` last, because its presence means finished.

    Raises InputError where the disk refuses.
    """
    run, composed = state.run, state.method
    independent = out_of_fold or (residuals if division.independent else None)
    how = "out-of-fold" if out_of_fold is not None else division.how
    learned = learn_confidence(composed.plan, division, independent, how, state.report)
    if learned.review is not None:
        write_reference(run, learned.review)
    write_json(run / "calibration.json", learned.facts)
    write_json(run / "plan.json", composed.plan.to_json())
    config = state.config.model_copy(update={"minutes": None})  # the steps of each stage say it all
    text = card(config, composed, division, residuals, out_of_fold, learned.lines, state.seconds)
    write_text(run / "card.md", text)
    write_config(run / "config.yaml", config)
    write_weights(run, composed, half=config.weights == "half")
