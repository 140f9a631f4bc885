"""The options of a port as one value, made once by the command line or a public function."""

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

    ``variant`` is found from the shapes when left out; ``mapping`` is a user's own YAML file. ``weights``: ``ema`` or
    ``raw`` where both exist. ``layout`` ``timm`` makes the weights exact in definitions whose squeeze-excite gate is
    1/6, ``slim`` leaves them as they are. ``keep_background`` keeps class 0 of slim's 1,001; ``num_classes`` is what
    the caller expects the classifier to give. ``fold_bn`` folds batch norms into the convolutions before them.
    ``fake_quant`` says whether the port computes the 8 bits that the source was trained for: by default where the
    source has their ranges. ``backbone`` takes the network that is inside a larger model, without head and classifier.
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
