"""The options of a port as one value."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Literal

from porter.sources.weights import Weights

PathLike = str | os.PathLike[str]
ArtifactLayout = Literal["timm", "slim"]


@dataclass(frozen=True)
class PortOptions:
    """How to port a source.

    ``variant``: found from the shapes if None. ``mapping``: your own YAML file. ``weights``: ``ema`` or ``raw`` where
    both exist. ``layout``: ``timm`` makes the weights exact for definitions whose squeeze-excite gate is 1/6, ``slim``
    leaves them unchanged. ``keep_background``: keep class 0 of slim's 1,001. ``num_classes``: the expected size of the
    classifier. ``fold_bn``: fold batch norms into the convolutions before them. ``fake_quant``: compute the 8 bits that
    the source was trained for; None: if it has their ranges. ``backbone``: port the network inside a larger model,
    without head and classifier.
    """

    variant: str | None = None
    mapping: PathLike | None = None
    weights: Weights = "auto"
    layout: ArtifactLayout = "timm"
    keep_background: bool = False
    num_classes: int | None = None
    fold_bn: bool = False
    fake_quant: bool | None = None
    backbone: bool = False


DEFAULT_OPTIONS = PortOptions()
