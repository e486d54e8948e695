"""Where the data lie that the studies are made with. Imports nothing of anatomark, so that it serves any version."""

from __future__ import annotations

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
VARIABLE = "ANATOMARK_DATA"


def data_folder() -> Path:
    """The environment variable ``ANATOMARK_DATA``, else ``../shared/data`` beside the checkout."""
    return Path(os.environ.get(VARIABLE) or ROOT.parent / "shared" / "data").resolve()


def data_set(name: str) -> Path | None:
    """The folder of a data set; None, with a printed line, where it is not there."""
    folder = data_folder() / name
    if folder.is_dir():
        return folder
    print(f"skipped {name}: there is no folder {folder} (set {VARIABLE})")
    return None
