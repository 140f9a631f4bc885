"""Ports with the mistakes that ports are known to make, each a callable for ``verify SOURCE tests/ports.py:NAME``.

They load the weights that the environment names (VARIANT, SOURCE, MAPPING, SIDE) and are written here once more, on
timm's building blocks or on torch alone.
"""

import functools
import os

import torch
import torch.nn.functional as F
from torch import nn

import porter


def plain(layout="timm", **options):
    """Our own class, no mistake."""
    given, mapping = (os.environ.get(name) for name in ("SOURCE", "MAPPING"))
    return porter.create_model(os.environ["VARIANT"], given, mapping=mapping, layout=layout, **options)


def slim_layout():
    """The weights and the gate as slim has them."""
    return plain("slim")


def folded():
    """Its batch norms folded, its kernels padded."""
    return plain(fold_bn=True)


class Front(nn.Module):
    """A network behind something that is done to its images."""

    def __init__(self, images):
        super().__init__()
        self.net, self.images = plain(), images

    def forward(self, x):
        return self.net(self.images(x))


def bgr():
    return Front(lambda x: x[:, [2, 1, 0]])


def zero_to_one():
    return Front(lambda x: x * 0.5 + 0.5)


def bytes_in():
    return Front(lambda x: 255 * (x * 0.5 + 0.5))


def imagenet_mean():
    def normalised(x):
        mean = torch.tensor([0.485, 0.456, 0.406], dtype=x.dtype).view(1, 3, 1, 1)
        std = torch.tensor([0.229, 0.224, 0.225], dtype=x.dtype).view(1, 3, 1, 1)
        return ((x + 1) / 2 - mean) / std

    return Front(normalised)


def takes_bytes():
    return Front(lambda x: (x - 127.5) / 127.5)


def resizes():
    size = (int(os.environ["SIDE"]),) * 2
    return Front(lambda x: F.interpolate(x, size=size, mode="bilinear", antialias=True))


class Hooked(nn.Module):
    """Our network with the outputs of some modules replaced."""

    def __init__(self, change, layout="timm"):
        super().__init__()
        self.net = plain(layout)
        change(self.net)

    def forward(self, x):
        return self.net(x)


def on(kind, replacement):
    """Replace what modules of the class named ``kind`` compute: ``replacement(module, inputs)``."""

    def change(net):
        for module in net.modules():
            if type(module).__name__ == kind:
                module.forward = functools.partial(replacement, module)

    return change


def swish():
    return Hooked(on("Hardswish", lambda _m, x: x * torch.sigmoid(x)))


def swish_inside():
    return Hooked(
        lambda net: [
            module.act1.register_forward_pre_hook(lambda _m, args: (args[0] * torch.sigmoid(args[0]) + 0,))
            or setattr(module, "act1", nn.SiLU())
            for module in net.modules()
            if type(module).__name__ == "SqueezeExcite"
        ]
    )


def hard_swish_inside():
    def change(net):
        for module in net.modules():
            if type(module).__name__ == "SqueezeExcite":
                module.act1 = nn.Hardswish()

    return Hooked(change)


def sigmoid_gate():
    return Hooked(on("Gate", lambda _m, x: 1 / (1 + torch.exp(-x))))


def gate_of_a_sixth():
    return Hooked(on("Gate", lambda _m, x: (x + 3).clamp(0, 6) / 6), layout="slim")


def small_epsilon():
    return Hooked(
        on(
            "BatchNorm2d",
            lambda m, x: F.batch_norm(x, m.running_mean, m.running_var, m.weight, m.bias, False, 0.0, 1e-5),
        )
    )


def symmetric_padding():
    return Hooked(
        on(
            "SameConv2d",
            lambda m, x: F.conv2d(x, m.weight, None, m.stride, (m.kernel_size[0] - 1) // 2, 1, m.groups),
        )
    )


def exchanged_kernels():
    def transposed(net):
        with torch.no_grad():
            for parameter in net.parameters():
                if parameter.ndim == 4:
                    parameter.copy_(parameter.permute(0, 1, 3, 2).clone())

    return Hooked(transposed)


def half_weights():
    def halved(net):
        net.load_state_dict({n: v.half().float() if v.is_floating_point() else v for n, v in net.state_dict().items()})

    return Hooked(halved)


class PooledLast(nn.Module):
    """The head convolution on the map, pooling behind it."""

    def __init__(self):
        super().__init__()
        self.net = plain()

    def forward(self, x):
        net = self.net
        x = net.blocks(net.act1(net.bn1(net.conv_stem(x))))
        x = F.hardswish(F.conv2d(x, net.conv_head.weight, net.conv_head.bias))
        return net.classifier(x.mean((2, 3)))


class Shifted(nn.Module):
    """Classes counted from the background, the last one cut off."""

    def __init__(self):
        super().__init__()
        self.net = plain(keep_background=True)

    def forward(self, x):
        return self.net(x)[:, :1000]


def gate_first(layout="timm"):
    """Squeeze-excite before the activation that should come before it."""

    def change(net):
        for block in net.modules():
            if type(getattr(block, "se", None)).__name__ == "SqueezeExcite":
                name = "act2" if hasattr(block, "act2") else "act1"
                act, se = getattr(block, name), block.se
                setattr(block, name, nn.Identity())
                block.se = Both(se, act)

    return Hooked(change, layout)


def gate_first_in_slim():
    """With slim's gate and weights."""
    return gate_first("slim")


def activation_behind():
    def change(net):
        for block in net.modules():
            if type(getattr(block, "se", None)).__name__ == "SqueezeExcite":
                act = getattr(block, "act2", None) or block.act1
                block.se = Both(block.se, type(act)())

    return Hooked(change)


class Both(nn.Module):
    """One module behind the other."""

    def __init__(self, first, second):
        super().__init__()
        self.first, self.second = first, second

    def forward(self, x):
        return self.second(self.first(x))


def two_at_once():
    return Front(lambda x: x[:, [2, 1, 0]] * 0.5 + 0.5)


def nobody_knows():
    """A mistake that is on no list."""
    return Front(lambda x: x.flip(3) * 0.9)


def one_weight():
    def change(net):
        with torch.no_grad():
            net.conv_stem.weight[0, 0, 0, 0] *= 1.001

    return Hooked(change)


def timms_other_class():
    """timm's mobilenetv3_small_075: symmetric padding, and an epsilon of 1e-5."""
    from porter.models.timm_import import import_timm

    model = import_timm().create_model("mobilenetv3_small_075")
    model.load_state_dict(plain().state_dict())
    return model


def no_module():
    return 5


def raises():
    raise RuntimeError("somebody's code\nfailed")
