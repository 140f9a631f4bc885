"""The content of a checkpoint and its variant; needs neither torch nor tensorflow nor numpy."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from porter.artifacts.artifact import find_artifact
from porter.artifacts.inspection import inspect_artifact
from porter.errors import NotTheNetworkError
from porter.mapping.identify import Match, match_variants
from porter.mapping.options import PathLike
from porter.mapping.plan import fit, ignore_reason
from porter.mapping.stated import as_stated
from porter.port import choose_mapping
from porter.sources import Checkpoint, Variable, open_checkpoint
from porter.sources.weights import Weights


@dataclass(frozen=True)
class Inspection:
    """``closest``: the variant that fits best, exactly or not.

    ``used``: variables that a conversion reads. ``ignored``: stored names that it leaves out, with the reason.
    """

    checkpoint: Checkpoint
    closest: Match
    used: list[Variable]
    ignored: dict[str, str]

    def as_json(self) -> dict[str, Any]:
        """Everything, as plain values."""
        opened = self.checkpoint
        return {
            "path": str(opened.path),
            "format": opened.format,
            "weights": opened.weights,
            "step": opened.step,
            "variant": self.closest.variant if self.closest.exact else None,
            "closest": {key: value for key, value in self.closest._asdict().items() if key != "mapping"}
            | {"scope": self.closest.mapping.scope},
            "variables": [
                {
                    "name": v.name,
                    "stored_as": v.stored_as,
                    "shape": v.shape,
                    "dtype": v.dtype,
                    "bytes": v.nbytes,
                    "file": v.file,
                }
                for v in self.used
            ],
            "ignored": self.ignored,
        }


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
    return inspect_checkpoint(source, variant, mapping, weights).as_json()


def inspect_checkpoint(
    checkpoint: PathLike, variant: str | None = None, mapping: PathLike | None = None, weights: Weights = "auto"
) -> Inspection:
    """Open ``checkpoint`` and compare its shapes with every variant's.

    Raises CheckpointError on damage, MappingError if ``variant`` is given and another one fits.
    """
    opened = open_checkpoint(checkpoint, weights)
    closest = match_variants(opened)[0]
    if closest.exact and (not closest.classes or opened.format == "tflite"):  # whose names are numbers
        with suppress(NotTheNetworkError):  # a head that cannot be ported: convert says why
            own = as_stated(closest.mapping, opened).mapping
            closest = closest._replace(classes=fit(own, opened).classes)
    named = variant is not None or mapping is not None
    chosen = choose_mapping(opened, variant, mapping) if named else closest.mapping
    reasons = {name: ignore_reason(chosen, name) for name in opened}
    used = [variable for name, variable in opened.items() if reasons[name] is None]
    ignored = dict(opened.set_aside) | {name: reason for name, reason in reasons.items() if reason is not None}
    return Inspection(opened, closest, used, ignored)
