"""``anatomark zoo``."""

from __future__ import annotations

from pathlib import Path

import typer

from anatomark.cli.options import Json, print_json


def zoo(as_json: Json = False) -> None:
    """List the trained models that come with the package."""
    from anatomark.io.atomic import read_json
    from anatomark.model.run_folder import list_zoo

    models = []
    for name, folder in list_zoo().items():
        facts = read_json(folder / "plan.json")
        models.append({"name": name, "dimension": facts["ndim"], "modality": facts["modality"], "folder": str(folder),
                       "landmarks": facts["names"]})  # fmt: skip
    if as_json:
        print_json(models)
        return
    for m in models:
        about = f"{len(m['landmarks'])} landmarks, {m['dimension']}D {m['modality']}"
        typer.echo(f"{m['name']:<20} {about}; card: {Path(m['folder']) / 'card.md'}")
    if not models:
        typer.echo("no model is bundled with this installation; anatomark fit makes one")
