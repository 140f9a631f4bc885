"""Rendering of HTML reports: templates, and pictures as data URIs."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from porter.prediction.network import png_bytes
from porter.prediction.predictor import Prediction
from porter.text import printable

if TYPE_CHECKING:
    from jinja2 import Environment
    from PIL.Image import Image

SIDE = 320  # pixels of a photo with its prediction


def environment(package: str, **options: Any) -> Environment:
    """The templates of ``package``; what a template names must be given."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    loader = PackageLoader(package, "")
    return Environment(loader=loader, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, **options)


def rendered(name: str, **values: Any) -> bytes:
    """The page ``<name>.html.j2``, UTF-8; every text in ``values`` is made printable and escaped."""
    pages = environment(
        "porter.report", autoescape=True, finalize=lambda value: printable(value) if type(value) is str else value
    )
    pages.filters["e"] = lambda value: "-" if value is None else f"{value:.1e}"
    return pages.get_template(f"{name}.html.j2").render(**values).encode()


def as_uri(picture: Image | np.ndarray, at_most: int | None = None) -> str:
    """A photo, or (H, W, 3) uint8, as a data URI; made smaller where a side is longer than ``at_most`` pixels."""
    from PIL.Image import fromarray

    image = fromarray(picture) if isinstance(picture, np.ndarray) else picture
    if at_most:
        image.thumbnail((at_most, at_most))
    return "data:image/png;base64," + base64.b64encode(png_bytes(image)).decode()


def figure(name: str, photo: Image, found: Prediction) -> dict[str, Any]:
    """Values for the page ``predictions``: a small ``photo`` (RGB) with masks or boxes, and the classes."""
    small = photo.copy()
    small.thumbnail((SIDE, SIDE))
    rows = [(row.name or f"class {row.number}", row.value, row.colour) for row in found.rows]
    shown = "standard input" if name == "-" else Path(name).name
    return {"name": shown, "png": as_uri(found.picture(small)), "rows": rows}
