"""Manifests for the benchmark data, written outside the data folder.

    python studies/manifests.py --out manifests

The data folder is the environment variable ANATOMARK_DATA, by default ``../shared/data`` beside the repository. A data
set that is not there is skipped with a line that says so. The splits stand in ``anatomark.benchmark.sets``,
which ``anatomark benchmark`` uses too.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from anatomark.benchmark.sets import SETS, TEST_BRAIN, brain, cephalogram, data_folder, mouse_skull, write_table

__all__ = ["ROOT", "SETS", "TEST_BRAIN", "brain", "cephalogram", "data_folder", "mouse_skull", "write_table"]
ROOT = Path(__file__).resolve().parents[1]


def main(arguments: Sequence[str] | None = None) -> int:
    """Write every manifest whose data are there; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for the manifests")
    out = parser.parse_args(arguments).out.resolve()
    data = data_folder()
    if out == data or data in out.parents:
        parser.error(f"--out {out} lies inside the data folder {data}; choose a folder outside it")
    for name, write in SETS.items():
        if (data / name).is_dir():
            print(f"wrote {write(data / name, out)}")
        else:
            print(f"skipped {name}: there is no folder {data / name} (set ANATOMARK_DATA)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
