"""``predict``: running a port on images."""

from __future__ import annotations

import io
import sys
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
from porter.text import json_text, printable, shortened

if TYPE_CHECKING:
    from porter.prediction.classes import Guess

MAX_STDIN = 256 << 20  # bytes; the largest photos of ImageNet have 15 MB


@click.command()
@click.argument("source", metavar="ARTIFACT|SOURCE")
@click.argument("images", nargs=-1, required=True, metavar="IMAGE|FOLDER|PATTERN|-...")
@model_options
@click.option("--top", type=click.IntRange(1), default=5, show_default=True, help="How many classes.")
@preprocess_option
@skip_option
@click.option("--json", "as_json", is_flag=True, help="One JSON object an image, a line each.")
@click.option("--html", type=OUTPUT, metavar="FILE|-", help="Write a page of the images and their classes as well.")
@click.option("--masks", type=FILE, metavar="FOLDER", help="Of a segmenter: write each image's mask here, as PNG.")
@click.option("--boxes", type=FILE, metavar="FOLDER", help="Of a detector: write each image with its boxes here.")
@click.option("--least", type=float, default=0.3, show_default=True, help="Of a detector: scores from this on.")
@click.option("--force", is_flag=True, help="Overwrite masks or boxes.")
def predict(
    source: str,
    images: tuple[str, ...],
    as_json: bool,
    html: Path | None,
    masks: Path | None,
    boxes: Path | None,
    **options: Any,
) -> None:
    """Print the likeliest classes of IMAGES: files, all in a folder, a quoted pattern, or - for standard input."""
    if masks is not None:
        refuse_ignored("masks", "json", "force", "device", "class_names")
        _write_masks(source, images, masks, as_json, options)
        return
    if boxes is not None:
        refuse_ignored("boxes", "json", "force", "least", "device", "class_names")
        _write_boxes(source, images, boxes, as_json, options)
        return
    del options["least"]
    if options.pop("force"):
        raise click.UsageError("--force is for --masks and --boxes")
    from porter.photos.images import expand
    from porter.photos.labels import read_class_names
    from porter.prediction.classes import Settings, predict

    check_outputs(html, as_json=as_json)
    given: list[Path | BinaryIO] = []
    for name in images:
        given += [_standard_input()] if name == "-" else expand([name])
    skipped: list[str] = []
    class_names = options.pop("class_names")
    settings = Settings(
        top=options.pop("top"),
        preprocess=options.pop("preprocess"),
        device=options.pop("device") or "cpu",
        class_names=read_class_names(class_names) if class_names else (),
        skipped=(lambda error: skipped.append(str(error))) if options.pop("skip_unreadable") else None,
    )
    shown = []
    for image, guesses in predict(source, given, taken_port_options(options), settings):
        name = str(image) if isinstance(image, Path) else "-"
        if html:
            shown.append((image, guesses))
        if as_json:
            found = [g._asdict() | {"label": g.label and g.label._asdict()} for g in guesses]
            click.echo(json_text({"image": name, "classes": found}))
            continue
        click.echo(printable(name))
        for guess in guesses:
            click.echo(f"  {guess.probability:6.2%}  {guess.number:>4}  {_name(guess)}".rstrip())
    for line in skipped:
        click.echo(f"skipped: {shortened(line)}", err=True)
    if skipped:
        click.echo(f"skipped {len(skipped)} of {len(given)} images", err=True)
    if html:
        from porter.atomic import write_bytes
        from porter.report.predictions import predictions_html

        write_bytes(html, predictions_html(source, shown), force=True)
    if len(skipped) == len(given):
        raise PorterError("none of the images could be read")


def _write_masks(source: str, images: tuple[str, ...], folder: Path, as_json: bool, options: dict[str, Any]) -> None:
    """A mask for each image, and the shares of its classes."""
    from porter.photos.images import expand
    from porter.photos.labels import read_class_names
    from porter.prediction.masks import mask_png, segment, shares

    found, force = expand(images), options["force"]
    targets = _targets(found, folder, force)
    names = read_class_names(options["class_names"]) if options["class_names"] else ()
    for image, labels in segment(source, found, taken_port_options(options), options["device"] or "cpu"):
        assert isinstance(image, Path)
        _write(targets[image], mask_png(labels), force)
        found_shares = shares(labels, names)
        if as_json:
            classes = [{"number": number, "name": name, "share": share} for number, name, share in found_shares]
            click.echo(json_text({"image": str(image), "mask": str(targets[image]), "classes": classes}))
            continue
        click.echo(f"{printable(str(image))} -> {printable(str(targets[image]))}")
        for number, name, share in found_shares:
            click.echo(f"  {share:6.2%}  {number:>4}  {printable(name)}".rstrip())


def _targets(images: list[Path], folder: Path, force: bool) -> dict[Path, Path]:
    """Image -> the file in ``folder`` that is made of it. Raises PorterError where there can be none."""
    from porter.atomic import check_folder, refuse_existing

    check_folder(folder)
    targets = {path: folder / f"{path.stem}.png" for path in images}
    if len(set(targets.values())) < len(images):
        raise PorterError(f"{folder}: two images have one name; write what is made of them into two folders")
    for target in targets.values():
        refuse_existing(target, force)
    return targets


def _write(target: Path, data: bytes, force: bool) -> None:
    """Write ``target``, and make its folder first: a source that is refused leaves none behind."""
    from porter.atomic import make_folder, write_bytes

    make_folder(target.parent)
    write_bytes(target, data, force)


def _write_boxes(source: str, images: tuple[str, ...], folder: Path, as_json: bool, options: dict[str, Any]) -> None:
    """Each image with its boxes, and the boxes in pixels."""
    from porter.photos.images import expand, read_image
    from porter.photos.labels import read_class_names
    from porter.prediction.boxes import detect, drawn, name_of

    found, force, least = expand(images), options["force"], options["least"]
    targets = _targets(found, folder, force)
    names = read_class_names(options["class_names"]) if options["class_names"] else ()
    device = options["device"] or "cpu"
    for image, boxes in detect(source, found, taken_port_options(options), device, least):
        assert isinstance(image, Path)
        picture = read_image(image)
        _write(targets[image], drawn(picture, boxes, names), force)
        if as_json:
            click.echo(json_text({"image": str(image), "boxes": [box._asdict() for box in boxes]}))
            continue
        click.echo(f"{printable(str(image))} -> {printable(str(targets[image]))}")
        for box in boxes:
            left, right = (round(side * picture.width) for side in (box.left, box.right))
            top, bottom = (round(side * picture.height) for side in (box.top, box.bottom))
            place = f"{left},{top} to {right},{bottom}"
            click.echo(f"  {box.score:6.2%}  {box.number:>4}  {place:<24} {printable(name_of(box, names))}".rstrip())


def _name(guess: Guess) -> str:
    return printable("  ".join(filter(None, guess.label))) if guess.label else ""


def _standard_input() -> BinaryIO:
    data = sys.stdin.buffer.read(MAX_STDIN + 1)
    if len(data) > MAX_STDIN:
        raise PorterError(f"-: more than {MAX_STDIN >> 20} MiB of standard input; not a photo")
    return io.BytesIO(data)
