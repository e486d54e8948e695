"""Whether a damaged run folder is refused: seeded mutations of every file of a run, one at a time.

    python studies/damaged_runs.py RUN IMAGE --out damaged_runs.json [--count 600] [--seed 0]

Each mutated copy is loaded and asked for the landmarks of IMAGE. With the list of checksums there are two right ends:
refused in one line, or the same prediction. Then the list is left out, as in runs of earlier versions and after a
careless tool has made it anew: what is plausible then changes the prediction, but nothing may end in any other error.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from safetensors.numpy import load_file, save_file

import common
from anatomark.core.image import Image
from anatomark.errors import InputError
from anatomark.io.images import read_image
from anatomark.model.predict import load
from anatomark.model.run_files import LIST

SECONDS = 60  # that a mutated copy may take
VALUES: list[Any] = [
    None, True, 0, -1, 1, 3, 10**20, 1e308, -1e308, 1e-300, 0.5, "", "x", "nan", [], {}, [[]], [1, 2, 3], {"a": 1},
    float("nan"), float("inf"), "\ud800",
]  # fmt: skip
Random = np.random.Generator


# ---------------------------------------------------------------------- mutations of any file


def _cut(path: Path, rng: Random) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: int(rng.integers(0, max(1, len(data))))])


def _flip(path: Path, rng: Random) -> None:
    data = bytearray(path.read_bytes())
    # half of the time near the beginning, where headers lie
    for at in rng.integers(0, len(data) if rng.random() < 0.5 else min(len(data), 2000), int(rng.integers(1, 9))):
        data[at] ^= int(rng.integers(1, 256))
    path.write_bytes(bytes(data))


def _append(path: Path, rng: Random) -> None:
    path.write_bytes(path.read_bytes() + rng.bytes(int(rng.integers(1, 100))))


def _replace(path: Path, rng: Random) -> None:
    others = [p for p in path.parent.iterdir() if p != path and p.is_file()]
    shutil.copyfile(others[int(rng.integers(len(others)))], path)


def _remove(path: Path, rng: Random) -> None:
    path.unlink()


def _no_file(path: Path, rng: Random) -> None:
    path.unlink()
    kinds: list[Callable[[Path], Any]] = [os.mkfifo, Path.mkdir, lambda p: p.symlink_to("/dev/zero")]
    kinds[int(rng.integers(len(kinds)))](path)


# ---------------------------------------------------------------------- of what it holds


def _places(tree: Any) -> Iterator[tuple[Any, Any]]:
    """Every container within, with each of its keys."""
    for key in list(tree) if isinstance(tree, dict) else range(len(tree)) if isinstance(tree, list) else ():
        yield tree, key
        yield from _places(tree[key])


def _values(path: Path, rng: Random) -> None:
    """One value, at any depth, of JSON or YAML is another, is gone, or is there twice."""
    text = path.read_text()
    tree = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    places = list(_places(tree))
    shallow = [p for p in places if isinstance(p[0], dict)]
    place, key = (shallow if rng.random() < 0.7 else places)[int(rng.integers(len(shallow)))]
    what = rng.random()
    if what < 0.15:
        del place[key]
    elif what < 0.25 and isinstance(place, list):
        place.append(place[key])
    elif what < 0.25:
        place[f"{key}x"] = place[key]
    elif what < 0.4 and isinstance(place[key], int | float) and not isinstance(place[key], bool):
        place[key] = place[key] * float(rng.choice([-1, 10, 1e6, 0.1, 1e-6]))
    else:
        place[key] = VALUES[int(rng.integers(len(VALUES)))]
    path.write_text(json.dumps(tree) if path.suffix == ".json" else yaml.safe_dump(tree))


def _tensors(path: Path, rng: Random) -> None:
    """One tensor holds a number that cannot be, is of another shape or type, is gone, or has another name."""
    tensors = load_file(path)
    name = sorted(tensors)[int(rng.integers(len(tensors)))]
    value = np.array(tensors.pop(name))
    what = int(rng.integers(9))
    if what < 4 and value.size and value.dtype.kind == "f":
        value.flat[int(rng.integers(value.size))] = [np.nan, np.inf, -np.inf, np.finfo(value.dtype).max][what]
    elif what == 4:
        value = value[None]
    elif what == 5:
        value = value.ravel()[: max(0, value.size - 1)]
    elif what == 6:
        value = np.zeros(value.shape, np.int32 if value.dtype.kind == "f" else np.float32)
    elif what == 7:
        name = f"{name}x"
    if what != 8:
        tensors[name] = np.ascontiguousarray(value)
    save_file(tensors, path)


ANY = (_cut, _flip, _append, _replace, _remove, _no_file)
ALLOWED = {"listed": ("refused", "same"), "unlisted": ("refused", "same", "other")}
OWN = {".json": _values, ".yaml": _values, ".safetensors": _tensors}


# ---------------------------------------------------------------------- trials


@contextmanager
def _within(seconds: int) -> Iterator[None]:
    def late(*_: Any) -> None:
        raise TimeoutError(f"not done after {seconds} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def outcome(run: Path, image: Image, right: Any) -> tuple[str, str]:
    """``refused``, ``same``, ``other`` or ``fault``, and what was said. A result that cannot be is a fault, too."""
    try:
        with _within(SECONDS):
            prediction = load(run).predict(image)
    except InputError as error:
        return ("refused" if "\n" not in str(error) else "fault"), str(error)
    except Exception as error:
        return "fault", f"{type(error).__name__}: {error}"
    same = all(
        np.array_equal(getattr(prediction.landmarks, k), getattr(right.landmarks, k), equal_nan=True)
        for k in ("points", "radius90")
        if getattr(right.landmarks, k) is not None and getattr(prediction.landmarks, k) is not None
    )
    alike = prediction.landmarks.status == right.landmarks.status and prediction.flags == right.flags
    return ("same" if same and alike else "other"), ""


def trials(run: Path, image: Image, count: int, seed: int, listed: bool) -> list[dict[str, str]]:
    """The outcomes of ``count`` mutations of a run's files in turn; ``listed``: with the list of checksums."""
    right, rows = load(run).predict(image), []
    files = sorted(p.name for p in run.iterdir() if p.is_file() and (listed or p.name != LIST))
    with tempfile.TemporaryDirectory() as scratch:
        for i in range(count):
            rng, name = np.random.default_rng([seed, i, listed]), files[i % len(files)]
            copy = Path(shutil.copytree(run, Path(scratch) / str(i)))
            if not listed:
                (copy / LIST).unlink(missing_ok=True)
            own = OWN.get(Path(name).suffix)
            mutate = own if own and rng.random() < 0.7 else ANY[int(rng.integers(len(ANY)))]
            mutate(copy / name, rng)
            end, said = outcome(copy, image, right)
            rows.append({"number": str(i), "file": name, "mutation": mutate.__name__[1:], "end": end, "said": said})
            shutil.rmtree(copy)
    return rows


def main(given: Sequence[str] | None = None) -> None:
    """Mutate, load, predict, and write how each trial ended."""
    parser = common.arguments(__doc__, "run", "image")
    parser.add_argument("--count", type=int, default=600, help="of mutations, with the list and again without")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(given)
    image, figures, wrong = read_image(args.image), {}, []
    for kind, allowed in ALLOWED.items():
        rows = trials(args.run, image, args.count, args.seed, kind == "listed")
        ends = Counter(row["end"] for row in rows)
        figures |= {f"{kind}, {end}": ends[end] for end in ("refused", "same", "other", "fault")}
        wrong += [row for row in rows if row["end"] not in allowed]
    common.record(args.out, figures, run=args.run.name, count=args.count, seed=args.seed, wrong=wrong)


if __name__ == "__main__":
    common.run(main)
