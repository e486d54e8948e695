"""What is right of the inputs of the study of cases, by the number that a folder's name begins with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

Points = Mapping[str, tuple[float, ...]]


@dataclass(frozen=True)
class Right:
    """What is right: ``place``: the landmark lies on the brightest voxel; ``refused``, ``said``: what the one line of a
    refusal, or the output of a command that succeeds, matches; ``lower``: the box; ``grey``: the brightest value;
    ``points``: the landmarks of ``o.csv``, world mm; ``printed``: all that is printed."""

    place: bool = False
    refused: str = ""
    said: str = ""
    lower: tuple[int, ...] = ()
    grey: float | None = None
    points: Points = field(default_factory=dict)
    printed: str = ""


@dataclass(frozen=True)
class Plan:
    """What ``plan`` finds in a manifest: ``suspects``, as case and kind, ``note``, what a remark matches (blank: there
    is none), ``refused``, what its refusal matches."""

    suspects: frozenset[tuple[str, str]] = frozenset()
    note: str = ""
    refused: str = ""


SPACING = Right(refused="spacing")
EITHER = Right(place=True, refused=".")
SKULL = {"nasion": (1.5, -92.25, -18.0), "sella": (-0.75, -21.5, 30.125), "menton": (4.0, -60.0, -101.5)}
READ = Right(points=SKULL)
IMAGES = {
    "01": EITHER, "03": Right(place=True), "04": EITHER, "06": EITHER, "07": EITHER,
    "08": Right(refused="position.*spacing"), "09": Right(place=True), "10": Right(refused="im003"),
    "11": Right(refused="one place"), "14": Right(refused="orientation"), "15": Right(refused="apart"), "17": EITHER,
    "18": EITHER, "19": EITHER, "20": SPACING, "22": EITHER,
    "23": Right(place=True, said="mm apart", refused="mm apart"),
    "24": Right(place=True, said="mm apart", refused="mm apart"),
    "25": EITHER, "26": EITHER, "28": Right(said="right are unknown", refused="qform"),
    "29": EITHER, "30": SPACING,
    "32": Right(said="Analyze", refused="Analyze"), "33": Right(place=True, refused="gz"), "34": Right(place=True),
    "35": Right(place=True), "36": Right(place=True), "37": SPACING, "38": SPACING, "40": SPACING,
    "41": Right(place=True, refused="micron"), "43": Right(lower=(125, 40)), "44": Right(lower=(95, 10)),
    "46": Right(grey=250),
    "47": Right(place=True), "48": Right(place=True), "49": Right(place=True), "50": Right(place=True, refused="page"),
    "52": Right(refused=r"r08\.raw\.gz"), "53": Right(refused=r"nothere\.raw"),
    "54": Right(refused=r"m08c\.raw is cut off"),
    "55": Right(place=True), "56": Right(place=True), "57": Right(refused="im004.dcm is 22 x 18, the others 24 x 20"),
    "82": Right(printed=r"\[1\.7 1\.9 1\.1\] \[-31\.6 +17\.5 +-44\.25\]"),
}  # fmt: skip
LANDMARKS = {
    "58": Right(points=SKULL, said="nasion, sella, menton is 'preview'"),
    "60": Right(refused="row 4: a quote that opens here is never closed"),
    "61": Right(refused="row 3: a quote that opens here is never closed"), "62": READ,
    "64": Right(refused="different units"), "65": Right(refused="control point 1 has no label"), "66": READ, "67": READ,
    "68": READ, "69": READ, "70": READ, "72": READ, "73": READ, "74": READ, "75": READ, "76": READ, "78": READ,
    "79": Right(points={"AC": (1, 2, 3), "PC": (4, 5, 6)}),
}  # fmt: skip
PX = ("--unit", "px", "--spacing", "0.1")
FORMATS = {  # of folder 80: what is said of each file, and what it then holds
    "c14_dlc.csv": (PX, Right(points={"nose": (1, 2), "ear": (3, 4)})),
    "c15b_isbi_txt.txt": (("--frame", "image", *PX), Right(points={"1": (83.5, 99.6), "2": (147.3, 102.9)})),
    "o01_amira.landmarkAscii": (
        ("--frame", "LPS", "--unit", "um"), Right(points={"1": (1e-3, 2e-3, 3e-3), "2": (4e-3, 5e-3, 6e-3)})
    ),
    "o02_pts.pts": (("--frame", "RAS", "--unit", "mm"), Right(points={"S000": (-1, -2, 3), "S001": (-4, -5, 6)})),
    "o03_tag.tag": ((), Right(points={"a": (-1, -2, 3), "b": (-4, -5, 6)})),
    "o04_tps.tps": (PX, Right(refused="counts upwards from the lower edge of 'a.jpg'")),
    "o06_coco.json": (PX, Right(points={"a": (0.1, 0.2), "b": (0.3, 0.4)})),
    "o07_labelme.json": (PX, Right(points={"a": (0.1, 0.2)})),
    "o08_cldet.json": (PX, Right(points={"Sella": (1, 2)})),
}  # fmt: skip
MANIFESTS = {  # of folder 81
    "a00_ok": Plan(),
    "a01_trailing_space": Plan(),
    "a01b_case_differs": Plan(refused="row 4: .*case 'c2' has 'Nasion'; did you mean 'nasion'"),
    "a04_zero_for_missing": Plan(frozenset({("c2", "placeholder")})),
    "a04b_minus1_for_missing": Plan(frozenset({("c2", "placeholder")})),
    "a05b_outside_val": Plan(frozenset({("c6", "outside"), ("c6", "point")})),
    "a05c_outside_test": Plan(frozenset({("c7", "outside"), ("c7", "point")})),
    "a07_preview": Plan(note="pv.mrk.json: positionStatus of nasion, sella, menton is 'preview'"),
    "a08_nfd_label": Plan(),
    "b01_backslashes": Plan(),
    "b03_tilde": Plan(),
    "b06_header_caps": Plan(),
    "b11_same_image_train_test": Plan(frozenset({("c7", "image"), ("c7", "copy")})),
    "b18b_spacing_comma": Plan(),
}
