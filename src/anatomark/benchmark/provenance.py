"""Where figures come from: the machine and the code."""

from __future__ import annotations

import os
import platform
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Any

import anatomark


def machine() -> dict[str, Any]:
    """What speed depends on: processor, cores, memory, GPU, versions."""
    import numpy as np
    import torch

    model, info = platform.processor() or platform.machine(), Path("/proc/cpuinfo")
    if info.exists():
        lines = info.read_text(encoding="utf-8", errors="replace").splitlines()
        model = next((x.split(":", 1)[1].strip() for x in lines if x.startswith("model name")), model)
    memory = None
    with suppress(ValueError, OSError, AttributeError):  # not every system tells
        memory = round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1)
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "memory_gb": memory,
        "gpu": torch.cuda.get_device_name(0) if torch.cuda.is_available() else None,
        "system": platform.system(),
        "versions": {
            "anatomark": anatomark.__version__,
            "torch": torch.__version__,
            "numpy": np.__version__,
            "python": platform.python_version(),
        },
    }


def commit() -> str | None:
    """The commit of the checkout that the package runs from, with ``-dirty`` where files were changed; None where it
    runs from no checkout, or git does not answer."""
    root = Path(anatomark.__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    try:
        answer = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=40"], cwd=root, capture_output=True, text=True,
            timeout=20, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip() or None
