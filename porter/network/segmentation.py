"""LR-ASPP, DeepLab's head (arXiv 1905.02244, section 6.4; research/deeplab/model.py): what a table says, and nodes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, ClassVar

from msgspec import Meta, Struct
from msgspec.structs import replace

from porter.network.node import IMAGE, Group, Map, Node, Size
from porter.network.spec import Activation, Count, Sides
from porter.sources.stored_graph import ROUNDING

if TYPE_CHECKING:
    import numpy as np

    from porter.sources.stored_graph import StoredGraph


class Segmentation(Struct, frozen=True, forbid_unknown_fields=True):
    """The head on the last map and on that of the endpoint ``low``.

    ``filters`` are its inner channels. ``window`` and ``stride`` (height, width) are of its pooling, in positions of
    the last map; a map that is smaller is pooled whole. ``epsilon`` is that of its batch norm.
    """

    filters: Count
    window: Sides
    stride: Sides
    epsilon: Annotated[float, Meta(gt=0, lt=1)]
    low: str

    KEY: ClassVar[str] = "segmentation"  # of the head in a mapping file
    KIND: ClassVar[str] = "segmenter"
    UNIT: ClassVar[str] = "pixel"  # what gets a class
    ANY_SIZE: ClassVar[bool] = True  # of images
    TASK: ClassVar[str] = "Semantic Segmentation"
    TAG: ClassVar[str] = "image-segmentation"  # on Hugging Face
    SECTIONS: ClassVar[tuple[str, ...]] = ("segmentation",)
    CLASS_BIAS: ClassVar[str] = "classifier.high_classifier.bias"
    VALUES_PER_CLASS: ClassVar[int] = 1  # in that entry
    BACKGROUND_IS_A_CLASS: ClassVar[bool] = False
    GATED: ClassVar[bool] = True
    MODULE_OUTPUTS: ClassVar[int] = 1  # how many of ``outputs`` the module gives

    @property
    def inner(self) -> tuple[str, str]:
        """The key of the endpoint whose map the head takes beside the last one, and that endpoint."""
        return "segmentation.low", self.low

    def check(self) -> None:
        """Raise ValueError where the numbers contradict each other."""

    def as_in_graph(self, graph: StoredGraph, sources: Mapping[str, str]) -> Segmentation:
        """The head with the pooling and epsilon of a stored graph; ``sources`` are its variables by entry."""
        gate, aspp = (graph.by_weight.get(sources[f"classifier.{layer}.weight"]) for layer in ("scale.1", "cbr.0"))
        before = graph.path(gate)[::-1] if gate else []
        pooling = next((one for one in before if one.kind not in ROUNDING), None)
        pooling = pooling if pooling and min(pooling.window) > 0 else None
        norms = graph.behind(aspp) if aspp else ()
        epsilon = next((one.epsilon for one in norms if one.kind == "batch_norm"), None)
        return replace(
            self,
            window=list(pooling.window) if pooling else self.window,
            stride=list(pooling.stride) if pooling else self.stride,
            epsilon=self.epsilon if epsilon is None else epsilon,
        )

    def by_endpoint(self, outputs: Sequence[np.ndarray], _nodes: Sequence[Node], _size: Size) -> dict[str, np.ndarray]:
        """``outputs`` (maps NHWC) as values of endpoints, which a recorded reference has: before the last resizing."""
        return {"semantic": outputs[1]}

    def predictors(self, _nodes: Sequence[Node]) -> dict[str, bool]:
        """The endpoints that outputs are made of, and whether each has values for each class."""
        return {"semantic": True}

    def made(self, values: Mapping[str, np.ndarray], _nodes: Sequence[Node], size: Size) -> dict[str, np.ndarray]:
        """What is made of ``values`` (maps NHWC) of the predictors for images of ``size``: logits of every pixel.

        The resizing is bilinear, and puts corner pixels on corner pixels.
        """
        import numpy as np

        def along(before: int, after: int) -> np.ndarray:
            at = np.arange(after) * ((before - 1) / max(1, after - 1))
            return np.maximum(0.0, 1 - np.abs(at[:, None] - np.arange(before)))

        maps = values["semantic"].astype(np.float64)
        _, height, width, _ = maps.shape
        return {
            "logits": np.einsum("yh,xw,nhwc->nyxc", along(height, size[0]), along(width, size[1]), maps, optimize=True)
        }

    @property
    def class_layers(self) -> list[str]:
        """The layers with an output for each class."""
        return ["classifier.high_classifier", "classifier.low_classifier"]

    def groups(self, last: Map, inner: Map, classes: int, epsilon: float) -> Iterator[Group]:  # noqa: ARG002
        """The nodes of the head: ``logits`` (N, classes, H, W), and ``semantic`` at the inner map's size."""
        filters, channels, low = self.filters, last.channels, inner.channels
        at = "classifier"

        def convolution(
            name: str, module: str, given: str, shape: tuple[int, int], activation: Activation | None = None
        ) -> Node:
            node = Node(name, "convolution", (given,), (name,), module, module, (*shape, 1, 1))
            return node._replace(activation=activation)

        window, step = (self.window[0], self.window[1]), (self.stride[0], self.stride[1])
        pooled = Node("image_pooling/pool", "pool", (last.name,), window=window, step=step)
        # The endpoint lies before the gate, whose constant may be folded away
        gate = convolution("image_pooling", f"{at}.scale.1", pooled.name, (filters, channels))
        aspp = convolution("aspp0", f"{at}.cbr.0", last.name, (filters, channels), "relu")
        aspp = aspp._replace(module=f"{at}.cbr", norm=f"{at}.cbr.1", epsilon=self.epsilon)
        high = convolution("decoder_conv0", f"{at}.high_classifier", "aspp0/resized", (classes, filters))
        projected = convolution("feature_projection0", f"{at}.low_classifier", inner.name, (classes, low))
        nodes = [
            pooled,
            gate,
            Node("image_pooling/gate", "activation", (gate.name,), activation="gate"),
            Node("image_pooling/resized", "resize", ("image_pooling/gate", last.name)),
            aspp,
            Node("aspp0/scaled", "multiply", (aspp.name, "image_pooling/resized")),
            Node("aspp0/resized", "resize", ("aspp0/scaled", inner.name)),
            high,
            projected,
            Node("semantic", "add", (high.name, projected.name), ("semantic",), at),
            Node("logits", "resize", ("semantic", IMAGE)),
        ]
        yield Group("segmentation", {}, nodes, above=1)  # scopes beside that of the network

    @property
    def outputs(self) -> tuple[str, ...]:
        """The values that the network gives; the first is what its module gives."""
        return "logits", "semantic"
