"""anatomark: anatomical landmarks in 2D and 3D medical images.

The commands are functions of the same names, the nouns stand beside them; each loads what it needs on first use.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

# threads of torch that wait for each other sleep; where they spin, a busy machine makes the same work cost ten times as
# much processor time. Read when torch is imported, also by the processes that we start
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("KMP_BLOCKTIME", "0")

if TYPE_CHECKING:
    from anatomark.cases.case import Case
    from anatomark.cases.find import find_cases, find_landmarks
    from anatomark.cases.manifest import read_manifest
    from anatomark.core.alignment import Alignment
    from anatomark.core.box import paste
    from anatomark.core.grid import Grid
    from anatomark.core.image import Image
    from anatomark.core.landmarks import Landmarks, Status
    from anatomark.core.resample import resample
    from anatomark.errors import InputError
    from anatomark.evaluation.evaluate import evaluate
    from anatomark.io.images import read_image, write_image
    from anatomark.io.landmarks import convert, read_landmarks, write_landmarks
    from anatomark.model.predict import load, predict
    from anatomark.model.prediction import Prediction, read_prediction
    from anatomark.review import Review
    from anatomark.tools.crop import crop
    from anatomark.tools.measure.measure import measure
    from anatomark.tools.planes.planes import planes
    from anatomark.tools.register.register import register
    from anatomark.tools.simulate.simulate import simulate
    from anatomark.training.calibrate import calibrate
    from anatomark.training.fit import fit
    from anatomark.training.plan import plan

__version__ = "0.2.0"

_HOMES = {
    "Alignment": "anatomark.core.alignment",
    "Case": "anatomark.cases.case",
    "Grid": "anatomark.core.grid",
    "Image": "anatomark.core.image",
    "InputError": "anatomark.errors",
    "Landmarks": "anatomark.core.landmarks",
    "Prediction": "anatomark.model.prediction",
    "Review": "anatomark.review",
    "Status": "anatomark.core.landmarks",
    "calibrate": "anatomark.training.calibrate",
    "convert": "anatomark.io.landmarks",
    "crop": "anatomark.tools.crop",
    "evaluate": "anatomark.evaluation.evaluate",
    "find_cases": "anatomark.cases.find",
    "find_landmarks": "anatomark.cases.find",
    "fit": "anatomark.training.fit",
    "load": "anatomark.model.predict",
    "measure": "anatomark.tools.measure.measure",
    "paste": "anatomark.core.box",
    "plan": "anatomark.training.plan",
    "planes": "anatomark.tools.planes.planes",
    "predict": "anatomark.model.predict",
    "read_image": "anatomark.io.images",
    "read_landmarks": "anatomark.io.landmarks",
    "read_manifest": "anatomark.cases.manifest",
    "read_prediction": "anatomark.model.prediction",
    "register": "anatomark.tools.register.register",
    "resample": "anatomark.core.resample",
    "simulate": "anatomark.tools.simulate.simulate",
    "write_image": "anatomark.io.images",
    "write_landmarks": "anatomark.io.landmarks",
}

__all__ = [
    "Alignment",
    "Case",
    "Grid",
    "Image",
    "InputError",
    "Landmarks",
    "Prediction",
    "Review",
    "Status",
    "__version__",
    "calibrate",
    "convert",
    "crop",
    "evaluate",
    "find_cases",
    "find_landmarks",
    "fit",
    "load",
    "measure",
    "paste",
    "plan",
    "planes",
    "predict",
    "read_image",
    "read_landmarks",
    "read_manifest",
    "read_prediction",
    "register",
    "resample",
    "simulate",
    "write_image",
    "write_landmarks",
]


def __getattr__(name: str) -> Any:
    """A public name, imported from its module on first use; AttributeError for any other."""
    if name not in _HOMES:
        raise AttributeError(f"module 'anatomark' has no attribute {name!r}")
    from importlib import import_module

    value = globals()[name] = getattr(import_module(_HOMES[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
