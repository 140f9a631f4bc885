"""A verdict as one self-contained HTML file: no network, no script."""

from __future__ import annotations

import math
import shlex
from typing import Any

import numpy as np

from porter.parity.compare import Row
from porter.parity.evidence import Evidence, Picture
from porter.parity.verdict import Verdict
from porter.photos.labels import imagenet_labels, short_name
from porter.report.lines import PRECISIONS, circumstances, counted, reasons
from porter.report.pages import as_uri, rendered

# Colours of the heat map, smallest to largest difference: matplotlib's viridis at six places
VIRIDIS = np.array([(68, 1, 84), (65, 68, 135), (42, 120, 142), (34, 168, 132), (122, 209, 81), (253, 231, 37)])
CALM = np.array([(238, 244, 251), (8, 48, 107)])  # if everything is within its limits
PLOT_WIDTH, PLOT_HEIGHT, MARGIN = 760, 356, 56
BELOW = 84  # pixels, for layer names


def parity_html(verdict: Verdict, evidence: Evidence) -> bytes:
    """The whole page, UTF-8; same verdict, same bytes."""
    rows = verdict.worst_rows()
    furthest = sorted(rows, key=lambda row: -row.excess)
    first = verdict.first_divergence()
    shown = rows[rows.index(first) :] if first else furthest  # endpoints after a divergence differ because of it
    heat = evidence.heat_map
    return rendered(
        "parity",
        verdict=verdict,
        sentence=verdict.sentence()[:1].upper() + verdict.sentence()[1:],
        exact=PRECISIONS[verdict.precision],
        rows=rows,
        furthest=furthest[0],
        first=first,
        plot=_plot(verdict),
        counted=counted(verdict),
        lines=[*reasons(verdict), *circumstances(verdict)],
        channels=[(row, evidence.channels[row.endpoint]) for row in shown[:12] if row.endpoint in evidence.channels],
        heat=heat,
        foreign=any(row.port_name for row in rows),
        heat_png=_heat_png(heat.values, CALM if heat.row.passed else VIRIDIS) if heat else "",
        command=_command(verdict),
        heat_largest=float(np.nan_to_num(heat.values, nan=math.inf).max()) if heat else 0.0,
        pictures=[_picture(picture, evidence.classes) for picture in evidence.pictures],
    )


def _plot(verdict: Verdict) -> dict[str, Any]:
    """The errors of each endpoint on a log scale, in SVG's units. 0 is at the bottom, NaN and infinity at the top."""
    rows = verdict.worst_rows()
    exact = PRECISIONS[verdict.precision]
    figures: list[tuple[str, str, list[float | None]]] = [
        ("port, float32", "port", [row.port and row.port.largest for row in rows]),
        ("TensorFlow, float32", "reference", [row.reference and row.reference.largest for row in rows]),
        ("limit of the port's float32", "limit", [row.allowed and row.allowed.largest for row in rows]),
        (f"port, {exact}", "function", [row.function for row in rows]),
        (f"limit, {exact}", "limit", [row.function_limit if row.function is not None else None for row in rows]),
    ]
    figures = [(label, style, values) for label, style, values in figures if any(v is not None for v in values)]
    known = [v for _, _, values in figures for v in values if v is not None and v > 0 and math.isfinite(v)] or [1.0]
    low, high = math.floor(math.log10(min(known))), math.ceil(math.log10(max(known)))
    strange = any(v is not None and not math.isfinite(v) for _, _, values in figures for v in values)
    if strange or low == high:
        high += 1
    step = (PLOT_WIDTH - MARGIN - 16) / max(1, len(rows) - 1)
    places = [round(MARGIN + number * step, 1) for number in range(len(rows))]

    def height(value: float) -> float:
        exponent = high if not math.isfinite(value) else math.log10(value) if value > 0 else low
        return round(16 + (high - max(exponent, low)) / (high - low) * (PLOT_HEIGHT - 16 - BELOW), 1)

    def series(label: str, style: str, values: list[float | None]) -> dict[str, Any]:
        points = [
            (x, height(value), f"{row.endpoint}, {label}: {value:.1e}")
            for x, row, value in zip(places, rows, values, strict=True)
            if value is not None
        ]
        return {"label": label, "style": style, "points": points}

    spacing = max(1, (high - low) // 8)
    return {
        "width": PLOT_WIDTH,
        "height": PLOT_HEIGHT,
        "margin": MARGIN,
        "floor": height(10.0**low),
        "labels": _labels(rows, step),
        "grid": [(height(10.0**exponent), f"1e{exponent}") for exponent in range(low, high + (not strange), spacing)]
        + ([(height(math.inf), "NaN, inf")] if strange else []),
        "series": [series(*figure) for figure in figures],
        "rings": [(x, height(row.distance)) for x, row in zip(places, rows, strict=True) if not row.passed],
    }


def _labels(rows: list[Row], step: float) -> list[tuple[float, str]]:
    """Layer names below the plot, as many as fit: (x, name)."""
    named, last = [], -math.inf
    for i, row in enumerate(rows):
        if "/" not in row.endpoint and (i - last) * step >= 16:  # a layer's inner endpoints are near it
            named.append((round(MARGIN + i * step, 1), row.endpoint))
            last = i
    return named


def _command(verdict: Verdict) -> str:
    """The command that repeats the comparison, quoted for a shell."""
    options = ["--no-fake-quant"] if verdict.dequantized else []
    words = ["mnv3-port", "verify", "--variant", verdict.variant, *options, verdict.checkpoint]
    return shlex.join([*words, *([verdict.artifact] if verdict.artifact else [])])


def _picture(picture: Picture, classes: int) -> dict[str, Any]:
    labels = imagenet_labels(classes)
    pixels = np.clip((picture.image + 1) * 127.5 + 0.5, 0, 255).astype(np.uint8)
    ours, theirs = ([n for n, _ in side] for side in (picture.ours, picture.theirs))
    if ours == theirs:
        comparison = "the same classes in the same order"
    elif sorted(ours) == sorted(theirs):
        comparison = "the same classes in another order"
    else:
        comparison = f"{len(set(ours) & set(theirs))} of {len(theirs)} classes the same"
    return {
        "sample": picture.sample,
        "png": as_uri(pixels, 112),
        "pairs": [
            [(short_name(labels, n), chance) for n, chance in pair]
            for pair in zip(picture.ours, picture.theirs, strict=True)
        ],
        "comparison": comparison,
    }


def _heat_png(values: np.ndarray, colours: np.ndarray) -> str:
    finite = np.nan_to_num(values, nan=math.inf)
    largest = finite[np.isfinite(finite)].max(initial=0.0)
    share = np.where(np.isfinite(finite), finite / (largest or 1), 1.0) * (len(colours) - 1)
    below = np.minimum(share.astype(int), len(colours) - 2)
    part = (share - below)[..., None]
    return as_uri((colours[below] * (1 - part) + colours[below + 1] * part).astype(np.uint8))
