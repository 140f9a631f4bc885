"""MobileNetV3 (arXiv 1905.02244) as slim defines it, from SAME padding to the classifier.

The network is built from a mapping file's table (``porter.network``). Attribute names are timm's, so that state dicts
are interchangeable.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
import torch.fx
import torch.nn.functional as F
from torch import Tensor, nn
from torch._jit_internal import is_scripting  # torch.jit does not export it to type checkers
from torch.utils.checkpoint import checkpoint

from porter.mapping.gate import GATE_IN_16_BITS
from porter.models.feature_info import FeatureInfo, map_indices, pyramid
from porter.network.network import GATE_ENTRY, TIMM_GATE, Block, Network
from porter.network.node import behind_gates, same_padding
from porter.network.nodes import endpoint_modules, nodes, torchvision_names
from porter.network.spec import ACTIVATIONS, TAIL_ACTIVATIONS, Activation, Pooling, TailLayer

if TYPE_CHECKING:
    import numpy as np


def watched(x: object) -> bool:
    """Whether a compiler or tracer looks on: it chooses for itself, and wants a convolution's own kernel."""
    if torch.compiler.is_compiling() or isinstance(x, torch.fx.Proxy):
        return True
    return torch.jit.is_tracing()  # type: ignore[no-untyped-call, attr-defined]


class SameConv2d(nn.Conv2d):
    """``nn.Conv2d`` (NCHW, weight OIHW) with TensorFlow's SAME padding, for every size, stride, dilation and kernel.

    Depthwise through ``groups``. PyTorch's own ``padding="same"`` refuses strides.
    """

    def __init__(
        self,
        channels_in: int,
        out: int,
        kernel: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool = False,
    ) -> None:
        super().__init__(channels_in, out, kernel, stride, 0, dilation, groups, bias)
        # At stride 1 the padding does not depend on the size; where it is symmetric as well, the
        # convolution itself can pad, which saves a copy of the input.
        fixed = [same_padding(1, k, 1, d) for k, d in zip(self.kernel_size, self.dilation, strict=True)]
        self.pads_itself = self.stride == (1, 1) and all(before == after for before, after in fixed)
        if self.pads_itself:
            self.padding = tuple(before for before, _ in fixed)

    def forward(self, input: Tensor) -> Tensor:
        """(N, I, H, W) -> (N, O, ceil(H / stride), ceil(W / stride))."""
        if self.pads_itself:
            return self._conv_forward(input, self.weight, self.bias)
        top, bottom = self._padding(input, 0)
        left, right = self._padding(input, 1)
        if not is_scripting():  # noqa: SIM102 - TorchScript leaves out what is below, and would compile a condition
            if self.dilation == (1, 1) and not watched(input):
                weight = F.pad(self.weight, (right - left, 0, bottom - top, 0))
                return F.conv2d(input, weight, self.bias, self.stride, (bottom, right), 1, self.groups)
        input = F.pad(input, [left, right, top, bottom])
        return self._conv_forward(input, self.weight, self.bias)

    def _padding(self, input: Tensor, axis: int) -> tuple[int, int]:
        return same_padding(input.shape[2 + axis], self.kernel_size[axis], self.stride[axis], self.dilation[axis])


class VectorConv2d(nn.Conv2d):
    """A 1x1 convolution of (N, C, 1, 1), what pooling leaves: computed as the matrix product that it is.

    Of one image, PyTorch's convolution takes less time than the product and the changes of shape around it. With
    ``of_map`` it takes a map that was not pooled.
    """

    def __init__(self, channels_in: int, out: int) -> None:
        super().__init__(channels_in, out, 1)
        self.of_map = False

    def forward(self, input: Tensor) -> Tensor:
        """(N, channels_in, 1, 1) -> (N, out, 1, 1)."""
        if self.of_map:
            return self._conv_forward(input, self.weight, self.bias)
        if not is_scripting():  # noqa: SIM102 - as above
            if not watched(input) and len(input) == 1:
                return self._conv_forward(input, self.weight, self.bias)
        return F.linear(input.flatten(1), self.weight.flatten(1), self.bias)[:, :, None, None]


def pointwise(channels_in: int, out: int, network: Network) -> nn.Conv2d:
    """A 1x1 convolution with a batch norm behind it, or the bias for one."""
    return nn.Conv2d(channels_in, out, 1, bias=network.bn_folded)


def batch_norm(channels: int, network: Network, epsilon: float | None = None) -> nn.Module:
    """Batch norm with TensorFlow's constants (PyTorch's momentum is 1 - decay); nothing in a folded network."""
    if network.bn_folded:
        return nn.Identity()
    return nn.BatchNorm2d(channels, eps=epsilon or network.epsilon, momentum=1 - network.decay)


def activation(name: Activation) -> nn.Module:
    """The module of the activation ``name``, which works in place."""
    kind: type[nn.Module] = getattr(nn, ACTIVATIONS[name].torch)
    return kind(inplace=True)


class Gate(nn.Module):
    """Squeeze-excite gate ``relu6(x + 3) * slope``; slim's slope is 0.16667, not 1/6.

    ``one_operation`` computes a slope of 1/6 at once; without it, ``relu6`` has an output to look at.
    """

    def __init__(self, slope: float) -> None:
        super().__init__()
        self.slope = slope
        self.one_operation = slope == TIMM_GATE
        self.relu6 = nn.ReLU6()

    def forward(self, x: Tensor) -> Tensor:
        return F.hardsigmoid(x) if self.one_operation else self.relu6(x + 3.0) * self.slope

    def extra_repr(self) -> str:
        return f"slope={self.slope}"


class MapMean(nn.Module):
    """``nn.AdaptiveAvgPool2d(1)`` with the same bits, in two thirds of its time."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C, 1, 1)."""
        return x.mean((2, 3), keepdim=True)


class SqueezeExcite(nn.Module):
    """Scales the channels of (N, C, H, W) by a gate computed from their means."""

    def __init__(self, channels: int, squeezed: int, gate: float) -> None:
        super().__init__()
        self.pool = MapMean()
        self.conv_reduce = VectorConv2d(channels, squeezed)
        self.act1 = nn.ReLU(inplace=True)
        self.conv_expand = VectorConv2d(squeezed, channels)
        self.gate = Gate(gate)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(self.conv_expand(self.act1(self.conv_reduce(self.pool(x)))))


class InvertedResidual(nn.Sequential):
    """A block: expansion, depthwise convolution, squeeze-excite, linear projection; those that its kind has.

    A ``separable`` block does not expand. A ``fused`` one expands with the k x k convolution and has no depthwise one;
    a ``projection`` has neither, and is linear, where timm's has a ReLU.
    """

    def __init__(self, block: Block, network: Network) -> None:
        inner, act = block.expanded, block.activation
        shape, bias = (block.kernel, block.stride, block.dilation), network.bn_folded
        members: OrderedDict[str, nn.Module] = OrderedDict()
        number = 0
        if block.kind == "inverted_residual":
            members["conv_pw"] = pointwise(block.channels_in, inner, network)
        elif block.kind == "fused":
            members["conv_exp"] = SameConv2d(block.channels_in, inner, *shape, bias=bias)
        if block.expands:
            number = 1
            members |= {"bn1": batch_norm(inner, network), "act1": activation(act)}
        if block.depthwise:
            number += 1
            members["conv_dw"] = SameConv2d(inner, inner, *shape, groups=inner, bias=bias)
            members |= {f"bn{number}": batch_norm(inner, network), f"act{number}": activation(act)}
            members["se"] = SqueezeExcite(inner, block.squeezed, network.gate) if block.squeezed else nn.Identity()
        members[block.project] = pointwise(inner, block.out, network)
        members[f"bn{number + 1}"] = batch_norm(block.out, network)
        super().__init__(members)
        self.residual = block.residual
        self.drop_prob = 0.0

    def forward(self, x: Tensor, out: Tensor | None = None) -> Tensor:
        """(N, C, H, W) -> (N, channels, H / stride, W / stride); ``out``: what the layers gave already."""
        if out is None:
            out = x
            for module in self:
                out = module(out)
        return drop_path(out, self.drop_prob, self.training) + x if self.residual else out

    def with_member(self, x: Tensor, member: str) -> tuple[Tensor, Tensor]:
        """The block's output, and that of one of its modules; hooks of both see them."""
        out = inner = x
        for name, module in self.named_children():
            out = module(out)
            if name == member:
                inner = out
        return self(x, out), inner


def drop_path(x: Tensor, probability: float, training: bool) -> Tensor:
    """``x`` without some of its rows in training, the rest scaled up for them (arXiv 1603.09382)."""
    if not training or probability == 0.0:
        return x
    kept = torch.empty((x.shape[0], 1, 1, 1), dtype=x.dtype, device=x.device).bernoulli_(1 - probability)
    return x * kept / (1 - probability)


class ConvNormAct(nn.Module):
    """The last 1x1 convolution, batch norm and activation, where timm has them as a stage."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.conv = pointwise(network.blocks[-1].out, network.last, network)
        self.bn1 = batch_norm(network.last, network)
        self.act = activation(network.last_activation)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.bn1(self.conv(x)))


def check_images(x: Tensor | np.ndarray, channels: int) -> None:
    """Raise TypeError or ValueError if ``x`` is not a batch of images, (N, ``channels``, H, W) floats."""
    if not hasattr(x, "ndim"):
        raise TypeError(f"the network takes a tensor of (N, {channels}, H, W), not {type(x).__name__}")
    if x.ndim != 4 or x.shape[1] != channels:
        move = "permute" if isinstance(x, Tensor) else "transpose"
        hint = f"; NHWC? use x.{move}(0, 3, 1, 2)" if x.ndim == 4 and x.shape[3] == channels else ""
        hint = "; one image? use x[None]" if x.ndim == 3 and x.shape[0] == channels else hint
        raise ValueError(f"the network takes (N, {channels}, H, W), not {tuple(x.shape)}{hint}")
    if not str(x.dtype).removeprefix("torch.").startswith(("float", "bfloat")):
        raise TypeError(f"the network takes floats in [-1, 1], not {x.dtype}; for 8-bit RGB: x / 127.5 - 1")


@torch.fx.wrap  # torch.fx treats it as a leaf
def made_ready(x: Tensor, channels: int, training: bool) -> Tensor:
    """``x`` in the layout that is fastest at inference. Raises TypeError or ValueError if it is no batch of images."""
    if torch.compiler.is_compiling():  # a compiler chooses for itself
        return x
    if not isinstance(x, Tensor):
        raise TypeError(f"the network takes a tensor of (N, {channels}, H, W), not {type(x).__name__}")
    check_images(x, channels)
    # Every layer follows the layout that it is given; convolutions on CPU are faster in this one. Gradients follow it
    # as well, and DistributedDataParallel copies and warns if they lie otherwise than the weights
    return x.contiguous(memory_format=torch.channels_last) if x.device.type == "cpu" and not training else x


def state_gate(model: nn.Module, network: Network) -> None:
    """Give ``model`` a buffer that states its gate, where that is not 1/6.

    Loading a state dict for another gate raises RuntimeError with a sentence, whether it is strict or not. torch.export
    and torch.jit keep the buffer; torch.fx drops what is not computed with.
    """
    if network.stated_gate is not None:
        model.register_buffer(GATE_ENTRY, torch.tensor(network.stated_gate))
    model.register_load_state_dict_pre_hook(_check_gate)  # type: ignore[no-untyped-call]


def _check_gate(model: Any, state_dict: dict[str, Tensor], prefix: str, *_others: Any) -> None:
    own, entry = model.network.stated_gate, state_dict.get(prefix + GATE_ENTRY)
    given = None if entry is None else float(entry)
    if own is None and given is None:
        return
    if own is not None and given is not None and math.isclose(own, given, rel_tol=GATE_IN_16_BITS):
        state_dict[prefix + GATE_ENTRY] = torch.tensor(own)  # not as it was rounded
        return
    folding = behind_gates(nodes(model.network, classes=1))
    if any(name.rpartition(".")[0].removeprefix(prefix) in folding for name in state_dict):
        raise RuntimeError(  # before anything is loaded
            f"these weights are for a squeeze-excite gate of {given or TIMM_GATE:.6g}, and this network has "
            f"{own or TIMM_GATE:.6g}: it would compute something else. Open the file with porter.create_model(VARIANT, "
            "FILE), which folds the gate"
        )


class Trunk(nn.Module):
    """Stem and blocks, without what timm keeps behind them: (N, channels, H, W) -> (N, C, H / 32, W / 32).

    Sizes are rounded up.
    """

    __jit_unused_properties__ = ("default_cfg",)

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network
        self.pretrained_cfg: dict[str, Any] = {}  # timm's description; create_model fills it in
        self.conv_stem = SameConv2d(
            network.channels, network.stem, network.stem_kernel, network.stem_stride, bias=network.bn_folded
        )
        self.bn1 = batch_norm(network.stem, network)
        self.act1 = activation(network.stem_activation)
        stages: list[list[nn.Module]] = [[] for _ in range(network.blocks[-1].stage + 1)]
        for block in network.blocks:
            stages[block.stage].append(InvertedResidual(block, network))
        self.last_in_blocks = network.pools_in_layers and network.last > 0
        if self.last_in_blocks:
            stages.append([ConvNormAct(network)])
        self.blocks = nn.Sequential(*(nn.Sequential(*stage) for stage in stages))
        self.grad_checkpointing = False

    @property
    def default_cfg(self) -> dict[str, Any]:
        """timm's older name of ``pretrained_cfg``."""
        return self.pretrained_cfg

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Compute the insides of each stage again for its gradients, instead of keeping them in memory."""
        self.grad_checkpointing = enable

    def group_matcher(self, coarse: bool = False) -> dict[str, str]:
        """timm's patterns of parameters that belong together, for a learning rate of each layer."""
        return {"stem": r"^conv_stem|bn1", "blocks": r"^blocks\.(\d+)" if coarse else r"^blocks\.(\d+)\.(\d+)"}

    def no_weight_decay(self) -> set[str]:
        """Parameters that take no weight decay, beside biases and batch norms: none."""
        return set()

    def set_drop_path(self, rate: float) -> None:
        """Drop paths with a probability that grows from block to block, nearly to ``rate``, as timm's networks do."""
        blocks = [block for stage in self.blocks for block in stage.children()]
        for number, block in enumerate(blocks):
            if isinstance(block, InvertedResidual):
                block.drop_prob = rate * number / len(blocks)

    def add_last(self) -> None:
        """The last convolution, where timm keeps it behind the blocks; identities where there is none."""
        network = self.network
        self.conv_head: nn.Module = nn.Identity()
        self.bn2: nn.Module = nn.Identity()
        self.act2: nn.Module = nn.Identity()
        if network.last and not self.last_in_blocks:
            self.conv_head = pointwise(network.blocks[-1].out, network.last, network)
            self.bn2 = batch_norm(network.last, network)
            self.act2 = activation(network.last_activation)

    def forward_stem(self, x: Tensor) -> Tensor:
        """(N, channels, H, W) -> (N, stem, H / 2, W / 2)."""
        if not is_scripting():
            x = made_ready(x, self.network.channels, self.training)
        return self.act1(self.bn1(self.conv_stem(x)))

    def forward_blocks(self, x: Tensor) -> Tensor:
        """What the blocks make of images."""
        x = self.forward_stem(x)
        if self.grad_checkpointing and not is_scripting():
            for stage in self.blocks:
                x = recomputed(stage, x)
            return x
        return self.blocks(x)

    def forward_last(self, x: Tensor) -> Tensor:
        """What the last convolution makes of the blocks' map; see ``add_last``."""
        return x if self.last_in_blocks else self.act2(self.bn2(self.conv_head(x)))

    def forward_stages(
        self, x: Tensor, wanted: Sequence[int], stop_early: bool = False
    ) -> tuple[Tensor, dict[int, Tensor]]:
        """The blocks' last map, and those that the stages ``wanted`` give; -1 is the stem.

        ``stop_early`` computes no stage behind these.
        """
        x = self.forward_stem(x)
        maps = {-1: x}
        for number, stage in enumerate(self.blocks):
            if stop_early and number > max(wanted):
                break
            x = recomputed(stage, x) if self.grad_checkpointing else stage(x)
            if number in wanted:
                maps[number] = x
        return x, maps

    def forward_features(self, x: Tensor) -> Tensor:
        """The last feature map."""
        return self.forward_blocks(x)


def recomputed(stage: nn.Module, x: Tensor) -> Tensor:
    """``stage(x)``, computed again for the gradients; batch norms count the batch once."""

    @contextmanager
    def without_statistics() -> Iterator[None]:
        norms = [(norm, norm.momentum) for norm in stage.modules() if isinstance(norm, nn.BatchNorm2d)]
        for norm, _ in norms:
            norm.momentum = 0.0
        try:
            yield
        finally:
            for norm, momentum in norms:
                norm.momentum = momentum

    contexts = lambda: (nullcontext(), without_statistics())  # noqa: E731 - of the two computations
    return checkpoint(stage, x, use_reentrant=False, context_fn=contexts)


ONE_LAYER = (TailLayer("dense"),)  # of a network without an embedding, which other classifiers have


class MobileNetV3(Trunk):
    """The classifier: (N, channels, H, W) float, RGB in [-1, 1] -> (N, num_classes) logits.

    State-dict keys are those of timm's ``tf_mobilenetv3_*``. ``num_classes`` 0 gives the
    (N, features) embedding. ``dropout`` is the probability of dropping, in training mode only. Weights are
    PyTorch's defaults; ``initialize`` gives slim's.
    """

    def __init__(self, network: Network, num_classes: int = 1000, dropout: float | None = None) -> None:
        if network.tail and not num_classes:
            network = replace(network, tail=ONE_LAYER)
        super().__init__(network)
        state_gate(self, network)
        self.num_classes = num_classes
        self.drop_rate = network.dropout if dropout is None else dropout
        self.global_pool = POOLINGS[network.pooling]()
        self.add_last()
        if network.embedding:
            self.conv_head = VectorConv2d(network.last, network.embedding)
            self.act2 = activation(network.embedding_activation)
        self.pooled = True
        self.classifier = _classifier(network, num_classes)
        self.num_features, self.head_hidden_size = network.map_channels, network.features
        self.feature_info = FeatureInfo(pyramid(network))

    def get_classifier(self) -> nn.Module:
        """The last layer; an identity where there are no classes."""
        return self.classifier

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Put a new, untrained classifier in place of the last layer; 0 leaves the embedding.

        ``global_pool`` is ``avg`` or ``max``; without one, ``""``, there can be no classes. None leaves it.
        """
        if global_pool is not None:
            self.pool_by(global_pool, num_classes)
        elif num_classes and not self.pooled:
            raise ValueError("a map without pooling has no classes: give global_pool as well")
        self.num_classes = num_classes
        was = next(self.parameters())
        self.network = replace(self.network, tail=ONE_LAYER if self.network.tail else ())
        ranges = getattr(self, "ranges", {})  # of 8 bits: the new layer has none
        for name in [name for name in ranges if name.startswith("classifier")]:
            del ranges[name]
        self.classifier = _classifier(self.network, num_classes)
        initialize(self.classifier)
        self.classifier.to(was.device, was.dtype).train(self.training)

    def pool_by(self, kind: str, num_classes: int) -> None:
        """Pool by timm's word: ``avg``, ``max``, or ``""`` where there are no classes. Raises ValueError for others."""
        if kind not in TIMM_POOLINGS or (not kind and num_classes) or self.network.pooling == "none":
            raise ValueError(f"global_pool={kind!r}: use avg, max, or '' for no pooling and no classes")
        if kind:
            self.network = replace(self.network, pooling=TIMM_POOLINGS[kind])
        self.global_pool = POOLINGS[self.network.pooling]() if kind else nn.Identity()
        self.pooled = bool(kind)
        if isinstance(self.conv_head, VectorConv2d):
            self.conv_head.of_map = not kind

    def forward_features(self, x: Tensor) -> Tensor:
        """The last feature map, before pooling."""
        return self.forward_last(self.forward_blocks(x))

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """(N, last, h, w) feature map -> logits, or with ``pre_logits`` the (N, features) embedding."""
        x = self.global_pool(x)
        if self.last_in_blocks:
            x = self.act2(self.conv_head(x))
        if self.pooled:
            x = x.flatten(1)
        x = F.dropout(x, self.drop_rate, self.training)
        return x if pre_logits else self.classifier(x)

    def forward(self, x: Tensor) -> Tensor:
        """(N, channels, H, W) -> (N, num_classes)."""
        return self.forward_head(self.forward_features(x))

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | Sequence[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
        extra_blocks: bool = False,
    ) -> Any:
        """The last feature map, and the maps of the pyramid that ``indices`` choose, the last n for a number n.

        With ``extra_blocks`` the indices are of the stem and all stages. ``intermediates_only`` leaves out the last
        map, and ``stop_early`` its computation. ``norm`` has no meaning here. See timm.
        """
        if norm or output_fmt != "NCHW" or (stop_early and not intermediates_only):
            raise ValueError("norm is for transformers, output_fmt is NCHW, and stop_early needs intermediates_only")
        stages = [tap.stage for tap in pyramid(self.network)]
        stages = list(range(-1, len(self.blocks))) if extra_blocks else stages
        wanted = [stages[index] for index in map_indices(len(stages), indices)]
        x, found = self.forward_stages(x, wanted, stop_early)
        maps = [found[number] for number in sorted(wanted)]
        return maps if intermediates_only else (self.forward_last(x), maps)


class MapToRow(nn.Module):
    """(N, C, H, W) -> (N, H * W * C, 1, 1), with channels last, as TensorFlow flattens a map."""

    def forward(self, x: Tensor) -> Tensor:
        return x.permute(0, 2, 3, 1).flatten(1)[:, :, None, None]


# Both give (N, features, 1, 1)
POOLINGS: dict[Pooling, Callable[[], nn.Module]] = {
    "average": MapMean,
    "max": lambda: nn.AdaptiveMaxPool2d(1),
    "none": MapToRow,
}
TIMM_POOLINGS: dict[str, Pooling] = {"avg": "average", "max": "max", "": "average"}


def _classifier(network: Network, num_classes: int) -> nn.Module:
    """What makes classes of (N, features); an identity where there are none."""
    if not num_classes:
        return nn.Identity()
    if not network.tail:
        return nn.Linear(network.features, num_classes)
    layers: list[nn.Module] = []
    width = network.features
    for layer in network.tail:
        if layer.kind == "dense":
            inputs, width = width, layer.out or num_classes
            layers.append(nn.Linear(inputs, width))
        elif layer.kind == "batch_norm":
            assert layer.epsilon is not None
            decay = network.decay if layer.decay is None else layer.decay
            layers.append(nn.BatchNorm1d(width, eps=layer.epsilon, momentum=1 - decay))
        else:
            assert layer.activation is not None
            kind: type[nn.Module] = getattr(nn, TAIL_ACTIVATIONS[layer.activation].torch)
            # Not in place: the gradient of an activation before it may need what that one gave
            layers.append(kind() if layer.slope is None else kind(layer.slope))
    return layers[0] if len(layers) == 1 else nn.Sequential(*layers)


class MobileNetV3Features(Trunk):
    """The feature pyramid: a list of (N, C, H / r, W / r) maps, the last before each halving.

    ``out_indices`` selects among ``channels`` and ``reductions``; state-dict keys are the trunk's.
    """

    def __init__(self, network: Network, out_indices: Sequence[int] | None = None) -> None:
        super().__init__(network)
        state_gate(self, network)
        taps = pyramid(network)
        indices = map_indices(len(taps), out_indices)
        chosen = [taps[index] for index in indices]
        self.stages = [tap.stage for tap in chosen]
        self.endpoints = [tap.endpoint for tap in chosen]  # TensorFlow's names of the maps
        self.channels = [tap.channels for tap in chosen]
        self.reductions = [tap.reduction for tap in chosen]
        self.feature_info = FeatureInfo(chosen, indices)

    def forward(self, x: Tensor) -> list[Tensor]:
        """(N, channels, H, W) -> feature maps, in the order of ``out_indices``."""
        _, maps = self.forward_stages(x, self.stages)
        return [maps[stage] for stage in self.stages]


class Backbone(Trunk):
    """The trunk of a segmenter or detector: (N, channels, H, W) -> its last map, and the inner one its head takes.

    State dicts have torchvision's names, those of ``lraspp_mobilenet_v3_large``, while modules and parameters keep
    timm's: entries are renamed when a state dict is made or loaded.
    """

    def __init__(self, network: Network) -> None:
        super().__init__(network)
        assert network.head is not None
        self.add_last()
        _, endpoint = network.head.inner
        module = endpoint_modules(network, classes=0)[endpoint].removeprefix("backbone.")
        self.tapped, _, self.member = module.rpartition(".")
        self._names = {name: new.removeprefix("backbone.") for name, new in torchvision_names(network).items()}
        self.register_state_dict_post_hook(_rename_saved)  # type: ignore[no-untyped-call]
        self.register_load_state_dict_pre_hook(_rename_loaded)  # type: ignore[no-untyped-call]

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(N, channels, H, W) -> (N, last, H / 32, W / 32), and the inner map."""
        x = inner = self.forward_stem(x)
        for number, stage in enumerate(self.blocks):
            for position, block in enumerate(stage.children()):
                if f"blocks.{number}.{position}" == self.tapped:
                    assert isinstance(block, InvertedResidual)
                    x, inner = block.with_member(x, self.member)
                else:
                    x = block(x)
        return self.forward_last(x), inner


def _rename_saved(backbone: Any, state_dict: dict[str, Any], prefix: str, _metadata: Any) -> None:
    _rename(state_dict, prefix, backbone._names)


def _rename_loaded(backbone: Any, state_dict: dict[str, Any], prefix: str, *_others: Any) -> None:
    _rename(state_dict, prefix, {new: name for name, new in backbone._names.items()})


def _rename(state_dict: dict[str, Any], prefix: str, names: dict[str, str]) -> None:
    """Rename the modules below ``prefix`` in place, and keep the order of entries."""
    entries = list(state_dict.items())
    state_dict.clear()
    for entry, value in entries:
        module, _, part = entry.removeprefix(prefix).rpartition(".")
        known = entry.startswith(prefix) and module in names
        state_dict[f"{prefix}{names[module]}.{part}" if known else entry] = value


def initialize(module: nn.Module) -> None:
    """slim's training initialisation: normal of std 0.09, truncated at twice that, for convolutions; zero biases."""
    share = math.erf(math.sqrt(2))  # of a normal distribution within two std
    for child in module.modules():
        if isinstance(child, (nn.Conv2d, nn.Linear)):
            with torch.no_grad():  # nn.init.trunc_normal_ takes seven times as long, as it draws again and again
                child.weight.uniform_(-share, share).erfinv_().mul_(0.09 * math.sqrt(2)).clamp_(-0.18, 0.18)
            if child.bias is not None:
                nn.init.zeros_(child.bias)
