"""``anatomark simulate``."""

from __future__ import annotations

from typing import Annotated

import typer

from anatomark.cli.options import Cases, Json, Out, reporter, show


def simulate(
    cases: Cases,
    out: Out,
    count: Annotated[int, typer.Option(help="How many new cases.")],
    points: Annotated[int, typer.Option(help="Landmarks to add, spread over the foreground.")] = 0,
    reference: Annotated[str | None, typer.Option(metavar="CASE", help="Where points are spread.")] = None,
    include_originals: Annotated[bool, typer.Option("--include-originals", help="List the real cases too.")] = False,
    split: Annotated[str, typer.Option(help="Make them from train, val or test cases.")] = "train",
    seed: Annotated[int, typer.Option(help="Another seed, other cases.")] = 0,
    amplitude_mm: Annotated[float | None, typer.Option(help="Largest displacement of the warp.")] = None,
    wavelength_mm: Annotated[float | None, typer.Option(help="From one swing of the warp to the next.")] = None,
    rotation_deg: Annotated[float, typer.Option(help="Largest rotation.")] = 10.0,
    scale: Annotated[float, typer.Option(help="Largest change of size, 0.05 is 5 %.")] = 0.05,
    intensity: Annotated[float, typer.Option(help="Contrast, uneven gain, noise; 0 changes no value.")] = 0.5,
    as_json: Json = False,
) -> None:
    """Make new cases from real ones.

    Warped, turned, with another contrast; the landmarks are carried along exactly.
    """
    from anatomark.tools.simulate.simulate import simulate as make

    done = make(
        cases, out, count, points=points, reference=reference, seed=seed, split=split, originals=include_originals,
        amplitude_mm=amplitude_mm, wavelength_mm=wavelength_mm, rotation_deg=rotation_deg, scale=scale,
        intensity=intensity, report=reporter(as_json),
    )  # fmt: skip
    show(done, as_json)
