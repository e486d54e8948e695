"""What anatomark finds on this machine: packages, processor, memory, GPU, browser, extras, where it may write."""

from __future__ import annotations

import os
import platform
import re
import shutil
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any

import anatomark
from anatomark.errors import counted, listed
from anatomark.machine import idle_cores, memory_gb, usable_cores

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome", "firefox", "microsoft-edge")
MAC_BROWSERS = ("Safari", "Google Chrome", "Firefox", "Microsoft Edge", "Chromium")
LITTLE_MEMORY_GB, LITTLE_DISK_GB = 4.0, 2.0  # a training on volumes may need more
BUNDLED = ("brain-afids/weights.safetensors", "brain-data/Colin27_T1w.nii.gz")  # of anatomark/zoo
USES = {
    "serve": "for the review page and the service",
    "ray": "to predict on a Ray cluster",
    "docs": "to build the documentation",
    "test": "to test and change anatomark",
}
AGAIN = "pip install --force-reinstall anatomark"
REQUIREMENT = re.compile(r"([A-Za-z0-9][\w.-]*)(?:\[[^]]*\])?\s*([^;]*)(?:;(.*))?")


@dataclass(frozen=True)
class Check:
    """One thing that was looked at: its ``name`` and what was ``found``; ``remedy``: what to do, where something is to
    be done; ``needed``: whether nothing works without it."""

    name: str
    found: str
    remedy: str = ""
    needed: bool = False


@dataclass(frozen=True)
class Examination:
    """The outcome of :func:`examine`."""

    checks: Sequence[Check]

    @property
    def broken(self) -> list[Check]:
        """What has to be fixed before anatomark works."""
        return [check for check in self.checks if check.needed and check.remedy]

    def summary(self) -> dict[str, Any]:
        """The same, plain."""
        rows = {c.name: {"found": c.found, "remedy": c.remedy or None, "needed": c.needed} for c in self.checks}
        return {"usable": not self.broken, "checks": rows}

    def lines(self) -> list[str]:
        """A line for each check, and what to do below it."""
        width = max(len(c.name) for c in self.checks)
        out = []
        for c in self.checks:
            out.append(f"{c.name:<{width}}  {c.found}")
            if c.remedy:
                out.append(f"{'':<{width}}  {'needed' if c.needed else 'to fix it'}: {c.remedy}")
        return [*out, *([] if self.broken else ["anatomark can be used here"])]


def examine() -> Examination:
    """Look at this machine. Takes the time that torch takes to load, and writes nothing that stays."""
    python = Check("Python", f"{platform.python_version()} on {platform.platform(terse=True)}, {platform.machine()}")
    needs = [] if (found := _requirements()) is None else found
    checks = [Check("anatomark", f"{anatomark.__version__} in {Path(anatomark.__file__).parent}"), python]
    checks += [packages(needs), *processor(), memory(), browser()]
    checks += [extra(name, needs) for name in sorted({extra for _, _, extra in needs if extra})]
    return Examination([*checks, bundled(), writing()])


def _requirements() -> list[tuple[str, str, str]] | None:
    """(package, least version, extra or empty) that the installed anatomark asks for; None where it is not installed,
    but runs from its source."""
    try:
        return [parsed for text in requires("anatomark") or () if (parsed := parse(text))[0] != "anatomark"]
    except PackageNotFoundError:
        return None


def parse(requirement: str) -> tuple[str, str, str]:
    """(package, least version or empty, extra or empty) of ``numpy>=1.26; extra == "test"``."""
    match = REQUIREMENT.match(requirement)
    assert match, requirement
    name, versions, marker = match[1], match[2], match[3] or ""
    least = re.search(r">=\s*([\d.]+)", versions)
    of = re.search(r"""extra\s*==\s*["']([^"']+)""", marker)
    return name, least[1] if least else "", of[1] if of else ""


def lacking(name: str, least: str) -> str:
    """What is wrong with a package: ``numpy is missing``, ``numpy 1.20 is older than 1.26``; empty where nothing is."""
    try:
        there = version(name)
    except PackageNotFoundError:
        return f"{name} is missing"
    return f"{name} {there} is older than {least}" if least and _numbers(there) < _numbers(least) else ""


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(n) for n in re.findall(r"\d+", text.partition("+")[0])[:3])


def packages(needs: Sequence[tuple[str, str, str]]) -> Check:
    """The packages that every command may need."""
    core = [(name, least) for name, least, extra in needs if not extra]
    if problems := [text for name, least in core if (text := lacking(name, least))]:
        wanted = " ".join(f"'{n}>={v}'" if v else n for n, v in core if lacking(n, v))
        return Check("packages", "; ".join(problems), f"pip install {wanted}", needed=True)
    shown = [f"{name} {version(name)}" for name, _ in core if name in ("torch", "numpy", "SimpleITK", "matplotlib")]
    return Check("packages", f"{', '.join(shown)} and {len(core) - len(shown)} more", needed=True)


def extra(name: str, needs: Sequence[tuple[str, str, str]]) -> Check:
    """An optional part of anatomark, such as ``serve``."""
    problems = [text for package, least, of in needs if of == name and (text := lacking(package, least))]
    use = USES.get(name, "optional")
    if problems:
        return Check(f"[{name}]", f"{use}: {listed(problems, 2)}", f"pip install 'anatomark[{name}]'")
    return Check(f"[{name}]", f"{use}: installed")


def processor() -> list[Check]:
    """Cores and the GPU, as torch sees them."""
    cores, free = usable_cores(), idle_cores()
    total = os.cpu_count() or cores
    idle = f"about {free} free" if free else "all busy: everything takes longer"
    found = f"{cores} of {total} cores may be used, {idle}" if cores < total else f"{counted(cores, 'core')}, {idle}"
    try:
        import torch
    except Exception as error:  # a broken library is an ImportError or an OSError, as the system likes
        why = (str(error).strip() or type(error).__name__).splitlines()[0]
        return [Check("processor", found), Check("torch", f"cannot be loaded: {why}", "pip install torch", needed=True)]
    threads = torch.get_num_threads()
    many = "" if threads <= cores else f"torch would take {threads} threads: give `threads` {cores}"
    return [
        Check("processor", f"{found}; torch computes with {threads} thread{'s' * (threads > 1)}", many),
        _gpu(torch),
    ]


def _gpu(torch: Any) -> Check:
    if torch.cuda.is_available():
        devices = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
        return Check("GPU", "; ".join(f"{d.name}, {d.total_memory / 1e9:.0f} GB" for d in devices))
    if torch.backends.mps.is_available():
        return Check("GPU", "Apple's, for `device` mps; the CPU is used unless you ask for it")
    if shutil.which("nvidia-smi") is None:
        return Check("GPU", "none: the CPU is used")
    if torch.version.cuda is None:
        build = f"torch {torch.__version__} is a build for the CPU"
        return Check("GPU", f"NVIDIA's, but {build}", "see https://pytorch.org/get-started/locally")
    return Check("GPU", "NVIDIA's, but torch does not reach it", "run nvidia-smi: is the driver as new as CUDA needs?")


def memory() -> Check:
    """Main memory."""
    total, free = memory_gb()
    if total is None:
        return Check("memory", "this system does not say")
    left = free is not None and free < LITTLE_MEMORY_GB
    text = f"{total:.1f} GB" + ("" if free is None else f", {free:.1f} free")
    return Check("memory", text, "close other programs before you train on large volumes" if left else "")


def browser() -> Check:
    """What the review page opens in."""
    if sys.platform == "win32":
        return Check("browser", "the system's own")
    chosen = [name for name in os.environ.get("BROWSER", "").split(os.pathsep) if name]
    found = [name for name in (*chosen, *BROWSERS) if shutil.which(name)]
    if sys.platform == "darwin":
        found += [name for name in MAC_BROWSERS if Path("/Applications", f"{name}.app").exists()]
    if found:
        return Check("browser", ", ".join(dict.fromkeys(found)))
    return Check("browser", "none: review works with `no_browser`, which prints the page's address", "install chromium")


def bundled() -> Check:
    """The model and the images that come with the package."""
    zoo = Path(anatomark.__file__).parent / "zoo"
    if missing := [name for name in BUNDLED if not (zoo / name).is_file()]:
        return Check("models", f"not there: {', '.join(str(zoo / name) for name in missing)}", AGAIN, needed=True)
    return Check("models", "brain-afids, and the brains of the demo")


def writing() -> Check:
    """Where results, temporary files and matplotlib's list of fonts go."""
    temporary = Path(tempfile.gettempdir())
    fonts = _fonts()
    refused = {folder: variable for folder, variable in ((temporary, "TMPDIR"), (fonts, "MPLCONFIGDIR"))
               if not _writable(folder)}  # fmt: skip
    if refused:
        where, remedy = ", ".join(map(str, refused)), f"set {' and '.join(refused.values())} to a folder of yours"
        return Check("writing", f"refused in {where}", remedy, needed=temporary in refused)
    here, free = Path.cwd(), shutil.disk_usage(Path.cwd()).free / 1e9
    if not _writable(here):
        return Check("writing", f"refused in this folder, {here}", "go to a folder of yours, or write elsewhere: `out`")
    little = f"only {free:.1f} GB are free in {here}: make room, or write elsewhere: `out`"
    return Check("writing", f"here ({free:.0f} GB free), {temporary}, {fonts}", little if free < LITTLE_DISK_GB else "")


def _fonts() -> Path:
    """Where matplotlib keeps its list of fonts."""
    if chosen := os.environ.get("MPLCONFIGDIR"):
        return Path(chosen)
    if not sys.platform.startswith(("linux", "freebsd")):
        return Path(os.path.expanduser("~/.matplotlib"))
    return Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "matplotlib")


def _writable(folder: Path) -> bool:
    """Whether files can be made in a folder, or in the one above where it would be made."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    with suppress(OSError), tempfile.TemporaryFile(dir=folder):
        return True
    return False
