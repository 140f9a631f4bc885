"""``predict``: running a port on images."""

from __future__ import annotations

import io
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import click

from porter.commands.options import (
    FILE,
    OUTPUT,
    check_outputs,
    model_options,
    preprocess_option,
    refuse_ignored,
    skip_option,
    taken_port_options,
)
from porter.errors import PorterError
from porter.text import SCHEMA, json_text, printable, shortened

if TYPE_CHECKING:
    from porter.photos.images import Photo
    from porter.prediction.predictor import Row

MAX_STDIN = 256 << 20  # bytes; the largest photos of ImageNet have 15 MB


@click.command()
@click.argument("source", metavar="ARTIFACT|SOURCE")
@click.argument("images", nargs=-1, required=True, metavar="IMAGE|FOLDER|PATTERN|-...")
@click.option("-o", "--output", type=FILE, metavar="FOLDER", help="Write masks, or drawn boxes and their JSON, here.")
@model_options
@click.option("--top", type=click.IntRange(1), default=5, help="For a classifier: number of classes.")
@preprocess_option
@click.option("--least", type=float, default=0.3, help="For a detector: lowest score.")
@skip_option
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per image, each on a line.")
@click.option("--html", type=OUTPUT, metavar="FILE|-", help="Also write a page of the images and their contents.")
@click.option("--force", is_flag=True, help="Overwrite files in the folder of -o.")
def predict(
    source: str,
    images: tuple[str, ...],
    output: Path | None,
    as_json: bool,
    html: Path | None,
    **options: Any,
) -> None:
    """Print the contents of IMAGES: a classifier's likeliest classes, a segmenter's class shares, a detector's boxes.

    IMAGES are files, a folder, a quoted pattern, or - for standard input. With -o, a segmenter writes a mask for each
    image (a PNG with a palette; pixels are class numbers), a detector the image with its boxes and a JSON file.
    """
    from porter.atomic import check_folder, make_folder, write_bytes
    from porter.photos.images import expand, photo_name, read_images
    from porter.photos.labels import read_class_names
    from porter.prediction.network import png_bytes
    from porter.prediction.predictor import open_predictor

    check_outputs(html, as_json=as_json)
    if output:
        check_folder(output)
    force, names = options.pop("force"), options.pop("class_names")
    if force and not output:
        raise click.UsageError("--force is for the files of -o")
    given: list[Photo] = []
    for name in images:
        given += [_standard_input()] if name == "-" else expand([name])
    skip, device = options.pop("skip_unreadable"), options.pop("device") or "cpu"
    port, names = taken_port_options(options), read_class_names(names) if names else ()
    predictor = open_predictor(source, port, device, names, **options)
    refuse_ignored(f"{source} is a {predictor.kind}", *predictor.ignored)
    targets = _targets(given, output, predictor.endings, force, html) if output else {}
    skipped: list[tuple[Photo, PorterError]] = []
    figures = []
    for photo, image in read_images(given, skipped if skip else None):
        found, name, files = predictor.find(image), photo_name(photo), targets.get(photo, ())
        about = {"schema": SCHEMA, "image": name} | ({"files": [str(file) for file in files]} if files else {})
        line = json_text(about | found.values)
        for file in files:
            make_folder(file.parent)  # only now: a refused source leaves no folder behind
            drawn = file.suffix == ".png"
            write_bytes(file, png_bytes(found.mask or found.picture(image)) if drawn else line.encode() + b"\n", force)
        if html:
            from porter.report.pages import figure

            figures.append(figure(name, image, found))
        click.echo(line if as_json else _text(name, files, found.rows))
    for _, error in skipped:
        click.echo(f"skipped: {shortened(str(error))}", err=True)
    if skipped:
        click.echo(f"skipped {len(skipped)} of {len(given)} images", err=True)
    if html:
        from porter.report.pages import rendered

        write_bytes(html, rendered("predictions", source=source, figures=figures), force=True)
    if len(skipped) == len(given):
        raise PorterError("none of the images could be read")


def _text(name: str, files: Sequence[Path], rows: Sequence[Row]) -> str:
    """An image, the files written for it, and a line for each class or box."""
    lines = [printable(" -> ".join([name, ", ".join(map(str, files))] if files else [name]))]
    for row in rows:
        what = "  ".join(printable(part) for part in (row.detail, row.name) if part)
        lines.append(f"  {row.value:6.2%}  {row.number:>4}  {what}".rstrip())
    return "\n".join(lines)


def _targets(
    photos: Sequence[Photo], folder: Path, endings: Sequence[str], force: bool, html: Path | None
) -> dict[Photo, list[Path]]:
    """Photo -> the files in ``folder`` to write for it. Raises PorterError if they cannot be written."""
    from porter.atomic import refuse_existing

    taken = {path.resolve(): "is one of the images; name another folder" for path in photos if isinstance(path, Path)}
    if html:
        taken[html.resolve()] = "is another output, too; name another folder"
    targets = {}
    for photo in photos:
        stem = photo.stem if isinstance(photo, Path) else "stdin"
        targets[photo] = [folder / f"{stem}{ending}" for ending in endings]
        for target in targets[photo]:
            if (place := target.resolve()) in taken:
                raise PorterError(f"{target}: {taken[place]}")
            taken[place] = "two images would have it; write what is made of them into two folders"
            refuse_existing(target, force)
    return targets


def _standard_input() -> BinaryIO:
    data = sys.stdin.buffer.read(MAX_STDIN + 1)
    if len(data) > MAX_STDIN:
        raise PorterError(f"-: more than {MAX_STDIN >> 20} MiB of standard input; not a photo")
    return io.BytesIO(data)
