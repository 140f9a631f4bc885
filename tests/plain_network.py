"""The network in plain functions of torch, in float64: from a mapping's table and entries under timm's names.

It shares the rows of the table with ``porter``, and nothing else. What a step after a port does to the function, it
does in a line or two.
"""

import copy
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F

SIXTH = 1 / 6
ACTIVATIONS = {"hard_swish": lambda x: x * F.relu6(x + 3) / 6, "relu": F.relu, "relu6": F.relu6, "elu": F.elu}
ACTIVATIONS |= {"tanh": torch.tanh, "sigmoid": torch.sigmoid, "silu": F.silu, "selu": F.selu, "gelu": F.gelu}


def padded(x, kernel, stride, dilation):
    """``x`` with TensorFlow's SAME padding: what is odd comes at the end."""
    pads = []
    for side, k in ((x.shape[3], kernel[1]), (x.shape[2], kernel[0])):
        total = max((-(-side // stride) - 1) * stride + (k - 1) * dilation + 1 - side, 0)
        pads += [total // 2, total - total // 2]
    return F.pad(x, pads)


def resized(x, like):
    return F.interpolate(x, like.shape[2:], mode="bilinear", align_corners=True)


@dataclass
class Plain:
    """A network: its table, its ``weights`` in float64, and what was asked of it.

    ``pooling`` is None where there is none, ``maps`` the chosen maps of a feature pyramid. ``normed`` are the layers
    with a batch norm and an epsilon, and ``gated`` those behind a gate, as the last run met them.
    """

    mapping: object
    weights: dict
    gate: float
    classes: int
    channels: int = 3
    output_stride: int | None = None
    pooling: str | None = "average"
    tail: tuple = ()
    maps: list | None = None
    normed: list = field(default_factory=list)
    gated: list = field(default_factory=list)

    def copy(self):
        return copy.copy(self)

    # What is computed

    def __call__(self, x):
        """(N, channels, H, W) float64 -> the outputs, as a list."""
        self.normed, self.gated = [], []
        head = self.mapping.head
        image = x
        x, maps, inner = self._blocks(x, "backbone." if head else "", head)
        if self.maps is not None:
            return [maps[index] for index in self.maps]
        if head is None:
            return [self._classifier(x)]
        return (
            [resized(self._segmented(x, inner, head), image)] if head.KIND == "segmenter" else self._detected(x, inner)
        )

    def _layer(self, x, name, stride=1, dilation=1):
        weight, bias = self.weights[f"{name}.weight"], self.weights.get(f"{name}.bias")
        if weight.ndim == 2:
            return F.linear(x, weight, bias)
        x = padded(x, weight.shape[2:], stride, dilation)
        return F.conv2d(x, weight, bias, stride, 0, dilation, x.shape[1] // weight.shape[1])

    def _norm(self, x, name, epsilon):
        parts = (self.weights[f"{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias"))
        return F.batch_norm(x, *parts, False, 0.0, epsilon)

    def _unit(self, x, layer, norm, act=None, stride=1, dilation=1, epsilon=None):
        epsilon = epsilon or self.mapping.definition.batch_norm.epsilon
        x = self._layer(x, layer, stride, dilation)
        if f"{norm}.weight" in self.weights:
            self.normed.append((layer, norm, epsilon))
            x = self._norm(x, norm, epsilon)
        return ACTIVATIONS[act](x) if act else x

    def _gated(self, x, name):
        gate = self._layer(x.mean((2, 3), keepdim=True), f"{name}.conv_reduce")
        return x * F.relu6(self._layer(F.relu(gate), f"{name}.conv_expand") + 3) * self.gate

    def _blocks(self, x, at, head):
        """The last map, those of the pyramid, and the one inside that a head takes."""
        table, maps, inner = self.mapping.network, {}, None
        x = self._unit(x, f"{at}conv_stem", f"{at}bn1", table.stem.activation, table.stem.stride)
        reached = table.stem.stride
        maps[reached], dilation, position = x, 1, 0
        for index, row in enumerate(table.blocks):
            position = position + 1 if index and table.blocks[index - 1].stage == row.stage else 0
            block, stride, rate = f"{at}blocks.{row.stage}.{position}", row.stride, 1
            if reached == self.output_stride:  # slim's rule: later strides become dilations of what follows
                stride, rate, dilation = 1, dilation, dilation * row.stride
            reached *= stride
            entering, number = x, 1
            if f"{block}.conv_exp.weight" in self.weights:
                x = self._unit(x, f"{block}.conv_exp", f"{block}.bn1", row.activation, stride, rate)
                number, inner = 2, self._inner(x, index, "expansion_output", head, inner)
            elif not row.fused and f"{block}.conv_pwl.weight" in self.weights:
                x = self._unit(x, f"{block}.conv_pw", f"{block}.bn1", row.activation)
                number, inner = 2, self._inner(x, index, "expansion_output", head, inner)
            if not row.fused:
                x = self._unit(x, f"{block}.conv_dw", f"{block}.bn{number}", row.activation, stride, rate)
                number, inner = number + 1, self._inner(x, index, "depthwise_output", head, inner)
            last = next(one for one in ("conv_pwl", "conv_pw", "conv") if f"{block}.{one}.weight" in self.weights)
            if row.se:
                x = self._gated(x, f"{block}.se")
                self.gated.append(f"{block}.{last}")
            x = self._unit(x, f"{block}.{last}", f"{block}.bn{number}")
            if row.skip and stride == 1 and x.shape[1] == entering.shape[1]:
                x = x + entering
            if index + 1 == len(table.blocks) or table.blocks[index + 1].stage != row.stage:
                maps[reached] = x
        if table.last:
            stage = f"{at}blocks.{table.blocks[-1].stage + 1}.0"
            inside, outside = (f"{stage}.conv", f"{stage}.bn1"), (f"{at}conv_head", f"{at}bn2")
            layer, norm = inside if table.head else outside
            if f"{layer}.weight" in self.weights:
                x = self._unit(x, layer, norm, table.last.activation)
            if table.head:
                maps[reached] = x
        return x, list(maps.values()), inner

    @staticmethod
    def _inner(x, index, end, head, inner):
        return x if head and head.inner[1] == f"layer_{index + 2}/{end}" else inner

    def _classifier(self, x):
        if self.pooling:
            x = x.mean((2, 3), keepdim=True) if self.pooling == "average" else x.amax((2, 3), keepdim=True)
        if self.mapping.network.head and "conv_head.weight" in self.weights:
            x = ACTIVATIONS[self.mapping.network.head.activation](self._layer(x, "conv_head"))
        x = x.flatten(1) if self.pooling else x
        layers = self.tail if len(self.tail) > 1 else ()
        if not layers:
            return self._layer(x, "classifier") if self.classes else x
        for number, layer in enumerate(layers):
            if layer.kind == "dense":
                x = self._layer(x, f"classifier.{number}")
            elif layer.kind == "batch_norm":
                x = self._norm(x, f"classifier.{number}", layer.epsilon)
            elif layer.activation == "leaky_relu":
                x = F.leaky_relu(x, layer.slope)
            else:
                x = ACTIVATIONS[layer.activation](x)
        return x

    def _segmented(self, last, low, head):
        pooled = F.avg_pool2d(last, [min(*sides) for sides in zip(last.shape[2:], head.window)], head.stride)
        gate = F.relu6(self._layer(pooled, "classifier.scale.1") + 3) * self.gate
        self.gated.append("classifier.high_classifier")
        x = self._unit(last, "classifier.cbr.0", "classifier.cbr.1", "relu", epsilon=head.epsilon)
        x = self._layer(resized(x * resized(gate, last), low), "classifier.high_classifier")
        return x + self._layer(low, "classifier.low_classifier")

    def _detected(self, last, first):
        maps, found = [first, last], ([], [])
        for number in range(len(self.mapping.head.extra)):
            at, x = f"extras.{number}", maps[-1]
            for part, stride in ((0, 1), (1, 2), (2, 1)):
                x = self._unit(x, f"{at}.{part}.0", f"{at}.{part}.1", "relu6", stride)
            maps.append(x)
        for number, x in enumerate(maps):
            for name, width, rows in (("boxes", 4, found[0]), ("classes", self.classes, found[1])):
                at = f"{name}.{number}"
                y = self._layer(self._unit(x, f"{at}.0.0", f"{at}.0.1", "relu6"), f"{at}.1")
                rows.append(y.permute(0, 2, 3, 1).reshape(len(y), -1, width))
        return [torch.cat(rows, 1) for rows in found]

    # What a step does to it

    def replaced(self, **entries):
        self.weights = {**self.weights, **entries}

    def without(self, *prefixes):
        self.weights = {name: value for name, value in self.weights.items() if not name.startswith(prefixes)}

    def for_gate(self, gate):
        """The same function by a gate of another slope, made up for behind it."""
        for name in self.gated:
            self.replaced(**{f"{name}.weight": self.weights[f"{name}.weight"] * (self.gate / gate)})
        self.gate = gate

    def fold(self):
        """Without the batch norms behind convolutions."""
        for layer, norm, epsilon in self.normed:
            mean, variance, scale, shift = (
                self.weights[f"{norm}.{part}"] for part in ("running_mean", "running_var", "weight", "bias")
            )
            factor, weight = scale / (variance + epsilon).sqrt(), self.weights[f"{layer}.weight"]
            self.without(f"{norm}.")
            folded = {f"{layer}.weight": weight * factor[:, None, None, None], f"{layer}.bias": shift - mean * factor}
            self.replaced(**folded)
        self.normed = []

    def for_channels(self, channels):
        """Grey takes the sum of the stem's kernels, and others repeat them."""
        name = "backbone.conv_stem.weight" if self.mapping.head else "conv_stem.weight"
        weight, had = self.weights[name], self.channels
        if channels != had:
            turns = [weight[:, channel % had] for channel in range(channels)]
            weight = weight.sum(1, keepdim=True) if channels == 1 else torch.stack(turns, 1) * had / channels
            self.replaced(**{name: weight})
        self.channels = channels
