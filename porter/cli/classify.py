"""``predict``: running a port on images."""

from __future__ import annotations

import json
from pathlib import Path

import click


@click.command()
@click.argument("source", metavar="ARTIFACT|SOURCE")
@click.argument("images", type=click.Path(path_type=Path, exists=True, dir_okay=False), nargs=-1, required=True)
@click.option("--variant", metavar="NAME", help="Needed where mnv3-port did not write the artifact.")
@click.option("--top", type=click.IntRange(1), default=5, show_default=True, help="How many classes.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object an image, a line each.")
def predict(source: str, images: tuple[Path, ...], variant: str | None, top: int, as_json: bool) -> None:
    """Print the likeliest classes of IMAGES."""
    from porter.prediction import predict

    for image, guesses in predict(source, images, variant, top):
        if as_json:
            found = [g._asdict() | {"label": g.label and g.label._asdict()} for g in guesses]
            click.echo(json.dumps({"image": str(image), "classes": found}))
            continue
        click.echo(str(image))
        for guess in guesses:
            name = f"{guess.label.wordnet}  {guess.label.names}" if guess.label else ""
            click.echo(f"  {guess.probability:6.2%}  {guess.number:>4}  {name}".rstrip())
