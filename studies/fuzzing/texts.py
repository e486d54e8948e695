"""Sound landmark files, manifests, definitions, settings and command lines: what is then damaged."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path

import numpy as np

from anatomark import Landmarks, write_landmarks
from anatomark.io.images import image_grid
from fuzzing import images

Rng = np.random.Generator
PICTURES = (".png", ".jpg", ".bmp", ".tif", ".jp2", ".dcm")
WORDS = ["nasion", "sella", "A", "b c", "1", "2", "Menton (Me)", "é", "x_y", "AC p=0.5"]
FOREIGN = {
    "a.tps": "LM=3\n1 2\n3 4.5\n5 6\nIMAGE=a.jpg\nID=1\nSCALE=0.1\n",
    "a.pts": "version: 1\nn_points: 2\n{\n1 2\n3 4\n}\n",
    "b.pts": "Version 1.0\n2\nS000 1 2 3\nS001 4 5 6\n",
    "a.txt": "1,2\n3,4\n5.5,6\n",
    "a.landmarkAscii": "# AmiraMesh 3D ASCII 2.0\ndefine Markers 2\nParameters {\n"
    ' NumSets 1,\n ContentType "LandmarkSet"\n}\n'
    "Markers { float[3] Coordinates } @1\n@1\n1 2 3\n4 5 6\n",
    "a.tag": 'MNI Tag Point File\nVolumes = 1;\nPoints =\n 1 2 3 1 1 1 "a"\n 4 5 6 1 1 1 "b";\n',
    "dlc.csv": "scorer,A,A,A\nbodyparts,nose,nose,nose\ncoords,x,y,likelihood\nimg.png,1,2,0.5\n",
    "slicer.csv": "label,l,p,s,defined,selected,visible,locked,description\na,1,2,3,1,1,1,0,x\nb,1,2,3,0,1,1,0,\n",
    "wide.csv": "# frame=LPS unit=mm\ncase,a_x,a_y,a_z,b_x,b_y,b_z\nc,1,2,3,4,5,6\nd,1,2,3,absent,,\n",
    "tidy.csv": "# frame=image unit=px\ncase;label;x;y;observer\nc;a;1,5;2;s\nc;a;1,5;3;j\nd;a;2;2;s\n",
}


def landmarks(folder: Path, rng: Rng) -> Path:
    """A file of every format that is read."""
    if rng.random() < 0.5:
        name = str(rng.choice([*FOREIGN]))
        (folder / name).write_text(FOREIGN[name], encoding=str(rng.choice(["utf-8", "utf-8", "utf-16", "utf-8-sig"])))
        return folder / name
    d = int(rng.choice([2, 3]))
    names = tuple(str(w) for w in rng.choice(WORDS, int(rng.integers(1, 6)), replace=False))
    path = folder / str(rng.choice(["a.mrk.json", "a.fcsv", "a.csv", "a.tsv", "a.json"]))
    write_landmarks(Landmarks(names, rng.uniform(-99, 99, (len(names), d))), path, spacing=0.5)
    return path


def manifest(folder: Path, rng: Rng) -> Path:
    """Two to four cases with images and landmarks."""
    rows = [str(rng.choice(["case,image,landmarks,split,spacing", "Case,Image,Landmarks,Split,Spacing"]))]
    for n in range(int(rng.integers(2, 5))):
        own = folder / f"c{n}"
        own.mkdir()
        image = [images.nifti, images.picture, images.dicom, images.mgh][rng.integers(4)](own, rng)
        flat = image.suffix in PICTURES
        marks = own / str(rng.choice(["a.csv"] if flat else ["a.mrk.json", "a.fcsv", "a.csv", "a.json"]))
        names = ("a", "b", "c")
        write_landmarks(Landmarks(names, rng.uniform(-20, 20, (3, 2 if flat else 3))), marks, spacing=0.5)
        split = str(rng.choice(["train", "train", "val", "test", ""]))
        spacing = "0.5" if image.suffix in PICTURES[:-1] else ""
        rows.append(f"k{n},{image.relative_to(folder)},{marks.relative_to(folder)},{split},{spacing}")
    text = "\n".join(rows) + "\n"
    (folder / "cases.csv").write_text(text.replace(",", ";") if rng.random() < 0.2 else text)
    return folder / "cases.csv"


def definition(folder: Path, rng: Rng) -> Path:
    """One of the ready definitions of planes and measurements."""
    ready = sorted(f.name for f in files("anatomark.tools.ready").iterdir() if f.name.endswith(".yaml"))
    name = str(rng.choice(ready))
    (folder / name).write_text((files("anatomark.tools.ready") / name).read_text(encoding="utf-8"), encoding="utf-8")
    return folder / name


def settings(folder: Path, rng: Rng) -> Path:
    """A config of ``fit``, or a suite of ``benchmark``."""
    config = """method:
  name: heatmap
  preset: recommended
  config: {}
minutes: 10
seed: 3
device: cpu
threads: 2
precision: auto
cache_mb: 512
align:
  enabled: true
refine:
  enabled: false
stage_steps:
  heatmap: 100
"""
    suite = """data:
  brain: {manifest: cases.csv, split: test, thresholds: [2, 3]}
methods:
  a: {method: pin, preset: recommended, minutes: 1}
  b: {method: heatmap, set: {seed: 3}}
seeds: [0, 1]
minutes: 2
baseline: a
"""
    which = rng.random() < 0.6
    path = folder / ("config.yaml" if which else "suite.yaml")
    path.write_text(config if which else suite)
    return path


def options(folder: Path, rng: Rng) -> Path:
    """A command line, as JSON, that crops, converts, plans or measures."""
    image, marks = images.mgh(folder, rng), folder / "m.mrk.json"
    points = image_grid(image).centre + rng.uniform(-1, 1, (3, 3))
    write_landmarks(Landmarks(("a", "1", "2"), points), marks)
    out = str(folder / "out")
    lines = [
        ["crop", str(image), "--landmarks", str(marks), "--out", out, "--margin-mm", "5", "--pad", "0"],
        ["crop", str(image), "--landmarks", str(marks), "--out", out, "--size-mm", "20,20,20", "--points", "a"],
        ["convert", str(marks), str(folder / "b.csv"), "--frame", "LPS", "--unit", "mm", "--spacing", "1"],
        ["measure", "acpc-length", str(marks), "--out", str(folder / "table.csv")],
        ["planes", "brain-afids", str(image), "--landmarks", str(marks), "--out", out],
        ["zoo"],
    ]
    path = folder / "arguments.json"
    if rng.random() < 0.2:
        lines = [["plan", str(manifest(folder, rng)), "--minutes", "5"]]
    path.write_text(json.dumps(lines[rng.integers(len(lines))]))
    return path


Maker = Callable[[Path, Rng], Path]
MAKERS: dict[str, Maker] = {
    "landmarks": landmarks, "manifest": manifest, "definition": definition, "settings": settings, "options": options,
}  # fmt: skip


def clear(folder: Path) -> Path:
    """An empty folder there."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder
