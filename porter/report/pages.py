"""Rendering of HTML reports: templates, and pictures as data URIs."""

from __future__ import annotations

import base64
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from porter.prediction.network import png_bytes
from porter.prediction.predictor import Prediction
from porter.text import printable

if TYPE_CHECKING:
    from PIL.Image import Image

SIDE = 320  # pixels of a photo with its prediction


def rendered(name: str, **values: Any) -> bytes:
    """The page ``<name>.html.j2``, UTF-8; everything in ``values`` is escaped."""
    from jinja2 import Environment, FunctionLoader, StrictUndefined

    def source(file: str) -> str:
        return files(__package__).joinpath(file).read_text("utf-8")

    environment = Environment(
        loader=FunctionLoader(source), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["e"] = lambda value: "-" if value is None else f"{value:.1e}"
    return environment.get_template(f"{name}.html.j2").render(**values).encode(errors="backslashreplace")  # file names


def png(pixels: np.ndarray, at_most: int | None = None) -> str:
    """(H, W, 3) uint8 as a data URI, scaled down if a side is longer than ``at_most`` pixels."""
    from PIL import Image

    return of_image(Image.fromarray(pixels), at_most)


def of_image(image: Image, at_most: int | None = None) -> str:
    """The same for a decoded photo."""
    if at_most:
        image.thumbnail((at_most, at_most))
    return "data:image/png;base64," + base64.b64encode(png_bytes(image)).decode()


def figure(name: str, photo: Image, found: Prediction) -> dict[str, Any]:
    """Values for the page ``predictions``: a small ``photo`` (RGB) with masks or boxes, and the classes."""
    small = photo.copy()
    small.thumbnail((SIDE, SIDE))
    rows = [(printable(row.name) or f"class {row.number}", row.value, row.colour) for row in found.rows]
    shown = "standard input" if name == "-" else printable(Path(name).name)
    return {"name": shown, "png": of_image(found.picture(small)), "rows": rows}
