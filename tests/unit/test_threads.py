"""Threads that wait for each other sleep, unless the user wants otherwise."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

CODE = "import sys, anatomark, ctypes; assert 'torch' not in sys.modules; ctypes.CDLL(sys.argv[1])"


@pytest.mark.parametrize(("given", "waits"), [({}, "PASSIVE"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "ACTIVE")])
def test_torch_threads_do_not_spin(given: dict[str, str], waits: str) -> None:
    spec = find_spec("torch")
    assert spec is not None and spec.origin is not None
    root = Path(spec.origin).parents[1]
    library = next(iter([*root.glob("torch.libs/libgomp*"), *root.glob("torch/lib/libgomp*")]), None)
    if library is None:
        pytest.skip("this torch has no libgomp")
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("OMP_", "GOMP_", "KMP_"))}
    done = subprocess.run(
        [sys.executable, "-c", CODE, str(library)], capture_output=True, text=True, check=True,
        env={**clean, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p), "OMP_DISPLAY_ENV": "verbose", **given},
    )  # fmt: skip
    assert f"OMP_WAIT_POLICY = '{waits}'" in done.stderr
    assert ("GOMP_SPINCOUNT = '0'" in done.stderr) is (waits == "PASSIVE")
