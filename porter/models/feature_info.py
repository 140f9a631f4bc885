"""The feature pyramid of a network: which stages end a resolution, and what comes out of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from porter.network.network import Network


class Tap(NamedTuple):
    """The last stage at a resolution: (N, ``channels``, H / ``reduction``, W / ``reduction``). Stage -1 is the stem.

    ``endpoint`` is TensorFlow's name of its output.
    """

    stage: int
    channels: int
    reduction: int
    endpoint: str

    @property
    def module(self) -> str:
        """The module whose output it is."""
        return "act1" if self.stage < 0 else f"blocks.{self.stage}"


class FeatureInfo(list[dict[str, int | str]]):
    """timm's description of feature maps: a list of ``num_chs``, ``reduction``, ``module``, and its three readers."""

    def __init__(self, taps: Sequence[Tap], out_indices: Sequence[int] | None = None) -> None:
        super().__init__({"num_chs": t.channels, "reduction": t.reduction, "module": t.module} for t in taps)
        self.out_indices = tuple(range(len(taps)) if out_indices is None else out_indices)

    def get_dicts(
        self, keys: Sequence[str] | None = None, idx: int | Sequence[int] | None = None
    ) -> list[dict[str, int | str]] | dict[str, int | str]:
        """Every map's description, one's, or some maps'; of some ``keys`` only."""
        return _chosen([{key: one[key] for key in keys or one} for one in self], idx)

    def channels(self, idx: int | Sequence[int] | None = None) -> list[int] | int:
        """Channels of every map, of one, or of some."""
        return self._of("num_chs", idx)

    def reduction(self, idx: int | Sequence[int] | None = None) -> list[int] | int:
        """How many times smaller than the image each map is."""
        return self._of("reduction", idx)

    def module_name(self, idx: int | Sequence[int] | None = None) -> list[str] | str:
        """The module that each map is the output of."""
        return self._of("module", idx)

    def _of(self, key: str, idx: int | Sequence[int] | None) -> Any:
        return _chosen([one[key] for one in self], idx)


def _chosen(values: Sequence[Any], idx: int | Sequence[int] | None) -> Any:
    """All of ``values``, one, or some."""
    if isinstance(idx, int):
        return values[idx]
    return values if idx is None else [values[i] for i in idx]


def map_indices(count: int, indices: int | Sequence[int] | None) -> list[int]:
    """``indices`` of ``count`` maps, from 0 on: negative ones count from the end, and a number n is the last n.

    Raises IndexError if there is no such map.
    """
    if indices is None:
        return list(range(count))
    chosen = range(-indices, 0) if isinstance(indices, int) else indices
    return [range(count)[index] for index in chosen]


def pyramid(network: Network) -> list[Tap]:
    """The last stage at each resolution, largest map first."""
    reduction = network.stem_stride
    taps = {-1: Tap(-1, network.stem, reduction, "layer_1")}  # by stage, which gives only its last map
    for block in network.blocks:
        reduction *= block.stride
        taps[block.stage] = Tap(block.stage, block.out, reduction, block.endpoint)
    if network.pools_in_layers and network.last:
        stage = network.blocks[-1].stage + 1
        taps[stage] = Tap(stage, network.last, reduction, network.endpoint_after_blocks(0))
    return list({tap.reduction: tap for tap in taps.values()}.values())
