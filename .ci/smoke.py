"""Is an installed anatomark whole? ``python .ci/smoke.py FOLDER [MINUTES]``, by the Python that it was installed into.

Runs the demo, what uses the files that come with the package, and the review of the demo's predictions."""

from __future__ import annotations

import re
import subprocess
import sys
import urllib.request
from importlib.metadata import version
from pathlib import Path

ANSWERS = {"": "anatomark", "v1/health": "{", "v1/cases": "Colin27_T1w"}  # a part of what each address answers


def anatomark(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "anatomark", *arguments]


def read(url: str, path: str) -> str:
    with urllib.request.urlopen(f"{url.partition('#')[0].rstrip('/')}/{path}", timeout=60) as answer:
        return str(answer.read().decode())


def check_review(out: Path) -> None:
    """The page of the demo's predictions answers with all that it needs."""
    import anatomark as package

    scan = Path(package.__file__).parent / "zoo" / "brain-data" / "Colin27_T1w.nii.gz"
    arguments = ("review", "demo/predictions", str(scan), "--model", "demo/run", "--out", "corrected")
    command = anatomark(*arguments, "--no-browser", "--port", "0")
    with subprocess.Popen(command, cwd=out, stdout=subprocess.PIPE, encoding="utf-8") as running:
        try:
            assert running.stdout is not None
            url = next(word for line in running.stdout for word in line.split() if word.startswith("http"))
            for path, part in ANSWERS.items():
                assert part in read(url, path), path
            files = re.findall(r'(?:src|href)="([^"#]+)"', read(url, "page/"))
            assert files and all(read(url, f"page/{file}") for file in files)
        finally:
            running.terminate()


def main() -> None:
    """Raises where something is amiss."""
    out, minutes = Path(sys.argv[1]).resolve(), (*sys.argv[2:], "0.5")[0]
    out.mkdir(parents=True)
    import anatomark as package

    source = Path(package.__file__).resolve()
    assert Path(__file__).resolve().parents[1] not in source.parents, f"{source} is the checkout's"
    assert package.__version__ == version("anatomark"), "the version is stated twice"
    scan = str(source.parent / "zoo/brain-data/Colin27_T1w.nii.gz")
    for arguments in (
        ("demo", "--minutes", minutes, "--out", "demo"),
        ("zoo",),
        ("measure", "acpc-length", "demo/predictions", "--out", "lengths.csv"),
        ("planes", "brain-afids", scan, "--landmarks", "demo/predictions", "--out", "planes"),
        ("predict", "brain-afids", scan, "--out", "found"),
    ):  # fmt: skip
        subprocess.run(anatomark(*arguments), cwd=out, check=True)
    assert (out / "demo/evaluation/report.html").stat().st_size > 10_000
    check_review(out)
    sys.stdout.write(f"anatomark {package.__version__} is whole\n")


if __name__ == "__main__":
    main()
