"""The content of a checkpoint and its variant; needs neither torch nor tensorflow nor numpy."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from porter.artifacts.artifact import find_artifact
from porter.artifacts.inspection import inspect_artifact
from porter.errors import NotTheNetworkError
from porter.mapping.identify import match_variants
from porter.mapping.options import PathLike
from porter.mapping.plan import fit, ignore_reason
from porter.mapping.stated import as_stated
from porter.port import choose_mapping
from porter.sources import Checkpoint, open_checkpoint
from porter.sources.weights import Weights


def inspect(
    source: PathLike, variant: str | None = None, *, mapping: PathLike | None = None, weights: Weights = "auto"
) -> dict[str, Any]:
    """What is in a checkpoint, an artifact or a release's folder, as plain values.

    Args:
        source: What ``open_checkpoint`` takes, an artifact, or a release's folder.
        variant: Of a checkpoint: refuse any other one.
        mapping: Of a checkpoint: a mapping file of your own.
        weights: Of a checkpoint: as for ``convert``.

    Returns:
        What ``mnv3-port inspect --json`` prints: of a checkpoint its format, variant and variables, of an artifact its
        metadata, tensors and parity. Reads no tensor values of a checkpoint.

    Raises:
        PorterError: On damage, and where ``variant`` is another one.

    Example:
        >>> found = porter.inspect(source)
        >>> found["variant"], found["format"]
        ('small_075', 'bundle')
    """
    file = find_artifact(source)
    if file is not None:
        return inspect_artifact(file)
    return inspect_checkpoint(open_checkpoint(source, weights), variant, mapping)


def inspect_checkpoint(
    opened: Checkpoint, variant: str | None = None, mapping: PathLike | None = None
) -> dict[str, Any]:
    """Everything that is known of ``opened``, as plain values: its shapes are compared with every variant's.

    Raises MappingError if ``variant`` is given and another one fits.
    """
    closest = match_variants(opened)[0]
    if closest.exact and (not closest.classes or opened.format == "tflite"):  # whose names are numbers
        with suppress(NotTheNetworkError):  # a head that cannot be ported: convert says why
            own = as_stated(closest.mapping, opened).mapping
            closest = closest._replace(classes=fit(own, opened).classes)
    named = variant is not None or mapping is not None
    chosen = choose_mapping(opened, variant, mapping) if named else closest.mapping
    reasons = {name: ignore_reason(chosen, name) for name in opened}
    return {
        "path": str(opened.path),
        "format": opened.format,
        "weights": opened.weights,
        "step": opened.step,
        "variant": closest.variant if closest.exact else None,
        "closest": {key: value for key, value in closest._asdict().items() if key != "mapping"}
        | {"scope": closest.mapping.scope},
        "variables": [
            {
                "name": v.name,
                "stored_as": v.stored_as,
                "shape": v.shape,
                "dtype": v.dtype,
                "bytes": v.nbytes,
                "file": v.file,
            }
            for name, v in opened.items()
            if reasons[name] is None
        ],
        "ignored": dict(opened.set_aside) | {name: reason for name, reason in reasons.items() if reason is not None},
    }
