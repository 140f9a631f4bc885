"""``diff``: two artifacts or sources, tensor by tensor."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal, NamedTuple

import numpy as np

from porter.artifacts.artifact import Artifact, find_artifact, load_artifact
from porter.mapping.apply import carry_out
from porter.mapping.options import ArtifactLayout, PortOptions
from porter.network.network import GATE_ENTRY, TIMM_GATE
from porter.port import plan_port
from porter.sources import Checkpoint, open_checkpoint

Status = Literal["equal", "close", "differs", "reshaped", "missing in A", "missing in B"]
CLOSE = 1e-5  # of the tensor's scale: float32 sums in another order differ by this


class Difference(NamedTuple):
    """One tensor: its shape on both sides (None: missing), and the largest difference, absolute and over B's scale."""

    name: str
    status: Status
    a: tuple[int, ...] | None
    b: tuple[int, ...] | None
    max_abs: float = 0.0
    max_rel: float = 0.0

    def within(self, tolerance: float) -> bool:
        """Equal, or different by at most ``tolerance`` of the scale."""
        return self.status == "equal" or (self.status in ("close", "differs") and self.max_rel <= tolerance)


def differences(a: str, b: str) -> Iterator[Difference]:
    """Compare what ``a`` and ``b`` hold: artifacts by entry, sources by variable.

    If they name tensors differently (an artifact and a checkpoint, slim and Keras), sources are compared as the
    artifacts that they would become. Only values are compared, not dtypes. Raises PorterError.
    """
    left, right = _open(a), _open(b)
    one, other = _values(left), _values(right)
    if not one.keys() & other.keys():
        one, other = _port_entries(left, right), _port_entries(right, left)
    if GATE_ENTRY in one or GATE_ENTRY in other:  # 1/6 unless it is stated
        unstated = {GATE_ENTRY: np.array(TIMM_GATE, np.float32)}
        one, other = unstated | dict(one), unstated | dict(other)
    for name in [*one, *(name for name in other if name not in one)]:
        yield _difference(name, one.get(name), other.get(name))


def _open(path: str) -> Artifact | Checkpoint:
    file = find_artifact(path)
    return load_artifact(file) if file else open_checkpoint(path)


def _values(source: Artifact | Checkpoint) -> Mapping[str, Any]:
    return source.arrays if isinstance(source, Artifact) else source


def _port_entries(source: Artifact | Checkpoint, other: Artifact | Checkpoint) -> Mapping[str, Any]:
    """State-dict entries of ``source``, in the layout of ``other`` if that is an artifact."""
    if isinstance(source, Artifact):
        return source.arrays
    metadata = other.metadata if isinstance(other, Artifact) else None
    layout: ArtifactLayout = "slim" if isinstance(other, Artifact) and other.gate != TIMM_GATE else "timm"
    keep_background = metadata is not None and not metadata.background_dropped
    fold_bn = metadata is not None and metadata.bn_folded
    port = plan_port(source, PortOptions(layout=layout, keep_background=keep_background, fold_bn=fold_bn))
    return carry_out(port.plan, source).arrays


def _difference(name: str, a: Any, b: Any) -> Difference:
    if a is None or b is None:
        status: Status = "missing in A" if a is None else "missing in B"
        return Difference(name, status, None if a is None else tuple(a.shape), None if b is None else tuple(b.shape))
    one, other = (side.read() if hasattr(side, "read") else np.asarray(side) for side in (a, b))
    if one.shape != other.shape:
        return Difference(name, "reshaped", one.shape, other.shape)
    if np.array_equal(one, other):
        return Difference(name, "equal", one.shape, other.shape)
    if one.dtype.kind not in "fiub" or other.dtype.kind not in "fiub":
        return Difference(name, "differs", one.shape, other.shape, float("inf"), float("inf"))
    apart = float(np.abs(one.astype(np.float64) - other).max())
    scale = float(np.abs(other.astype(np.float64)).max()) or 1.0
    status = "close" if apart / scale <= CLOSE else "differs"
    return Difference(name, status, one.shape, other.shape, apart, apart / scale)
