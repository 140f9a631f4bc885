"""``three_blocks`` as other people write networks: in functions, without submodules, and with outputs of their own.

Each callable is a port for ``verify SOURCE tests/functional_port.py:NAME``; ``RETURNS`` says what it makes of the
logits, ``RIGHT`` and ``WRONG`` what a verdict should be.
"""

from collections import namedtuple

import torch
import torch.nn.functional as F
from ports import plain
from torch import nn

BLOCKS = [("blocks.0.0", 2, F.relu_), ("blocks.1.0", 2, F.hardswish), ("blocks.1.1", 1, F.hardswish)]


def same(x, weight, stride, groups=1):
    """A convolution with TensorFlow's SAME padding."""
    pads = []
    for side in (int(x.shape[3]), int(x.shape[2])):
        total = max((-(-side // stride) - 1) * stride + weight.shape[-1] - side, 0)
        pads += [total // 2, total - total // 2]
    return F.conv2d(F.pad(x, pads), weight, None, stride, 0, 1, groups)


class Functional(nn.Module):
    """The network without submodules; ``change`` is made to what it returns."""

    def __init__(self, change=lambda y: y):
        super().__init__()
        self.change = change
        for name, value in plain().state_dict().items():
            if value.ndim:
                self.register_buffer(name.replace(".", "__"), value)

    def weights(self, name):
        return getattr(self, name.replace(".", "__"), None)

    def norm(self, x, at):
        mean, variance, gamma, beta = (
            self.weights(f"{at}.{name}") for name in ("running_mean", "running_var", "weight", "bias")
        )
        return F.batch_norm(x, mean, variance, gamma, beta, False, 0.0, 1e-3)

    def block(self, x, at, stride, act):
        out, number = x, 1
        if self.weights(f"{at}.conv_pwl.weight") is not None:
            out, number = act(self.norm(F.conv2d(out, self.weights(f"{at}.conv_pw.weight")), f"{at}.bn1")), 2
        kernels = self.weights(f"{at}.conv_dw.weight")
        out = act(self.norm(same(out, kernels, stride, len(kernels)), f"{at}.bn{number}"))
        if self.weights(f"{at}.se.conv_reduce.weight") is not None:
            reduce, expand = (
                (self.weights(f"{at}.se.{name}.weight"), self.weights(f"{at}.se.{name}.bias"))
                for name in ("conv_reduce", "conv_expand")
            )
            out = out * (F.relu6(F.conv2d(F.relu(F.conv2d(out.mean((2, 3), True), *reduce)), *expand) + 3) / 6)
        project = self.weights(f"{at}.conv_pwl.weight" if number == 2 else f"{at}.conv_pw.weight")
        out = self.norm(F.conv2d(out, project), f"{at}.bn{number + 1}")
        return x + out if stride == 1 else out

    def embedding(self, x):
        x = F.hardswish(self.norm(same(x, self.weights("conv_stem.weight"), 2), "bn1"), inplace=True)
        for at, stride, act in BLOCKS:
            x = self.block(x, at, stride, act)
        x = F.hardswish(self.norm(F.conv2d(x, self.weights("blocks.2.0.conv.weight")), "blocks.2.0.bn1"))
        head = self.weights("conv_head.weight"), self.weights("conv_head.bias")
        return F.hardswish(F.conv2d(x.mean((2, 3), True), *head)).flatten(1)

    def forward(self, x):
        return self.change(
            F.linear(self.embedding(x), self.weights("classifier.weight"), self.weights("classifier.bias"))
        )


class Embedding(Functional):
    def forward(self, x):
        return self.change(self.embedding(x))


class Autocast(Functional):
    def forward(self, x):
        with torch.autocast("cpu", torch.bfloat16):
            return super().forward(x)


class Trains(Functional):
    def forward(self, x):
        self.train()
        return F.dropout(super().forward(x), 0.2, self.training)


class Mutates(Functional):
    def forward(self, x):
        return super().forward(x.clamp_(-0.5, 0.5))


class OneSwish(Functional):
    def block(self, x, at, stride, act):
        return super().block(x, at, stride, F.silu if at == "blocks.1.1" else act)


class Single(Functional):
    """Runs in float32 only."""

    def forward(self, x):
        return super().forward(x) @ torch.eye(1000)


class Exits(Functional):
    def forward(self, x):
        raise SystemExit(3)


def exits():
    raise SystemExit(3)


def scripted(size=(51, 40)):
    return torch.jit.trace(Functional().eval(), torch.zeros(1, 3, *size))


def exported(size=(51, 40)):
    return torch.export.export(Functional().eval(), (torch.zeros(1, 3, *size),)).module()


def scripted_48():
    return scripted((48, 48))


def exported_48():
    return exported((48, 48))


Both = namedtuple("Both", "logits label")
RIGHT = {
    "logits": lambda y: y,
    "softmax": lambda y: y.softmax(1),
    "named": lambda y: Both(y, y.argmax(1)),
    "nested": lambda y: {"out": [y], "chances": y.softmax(1)},
    "as_map": lambda y: y[:, :, None, None],
}
WRONG = {
    "log_softmax": (
        lambda y: y.log_softmax(1),
        "the network is right; what it returns is the log-softmax of its logits",
    ),
    "in_float16": (lambda y: y.half(), "what it returns is its logits, rounded to float16"),
    "log_softmax_in_bfloat16": (
        lambda y: y.log_softmax(1).bfloat16(),
        "what it returns is the log-softmax of its logits, rounded to bfloat16",
    ),
    "sigmoid": (lambda y: y.sigmoid(), "what it returns is the sigmoid of its logits"),
    "plus_five": (lambda y: y + 5, "what it returns is its logits plus 5"),
    "centred": (lambda y: y - y.mean(1, True), "what it returns is its logits minus their mean"),
    "doubled": (lambda y: 2 * y, "what it returns is its logits times 2"),
    "negative": (lambda y: -y, "what it returns is its logits times -1"),
    "rolled": (lambda y: y.roll(3, 1), "what it returns is its logits rolled by 3"),
    "rolled_and_doubled": (lambda y: y.roll(3, 1) * -2, "what it returns is its logits rolled by 3, times -2"),
    "reversed": (lambda y: y.flip(1), "what it returns is its logits in another order"),
    "clamped": (lambda y: y.clamp(max=0), "the network is right up to Logits; what it returns is something else"),
    "one_of_two": (lambda y: (y, y.log_softmax(1)), "what it returns is the log-softmax of its logits"),
}
for _name, _change in (RIGHT | {name: change for name, (change, _) in WRONG.items()}).items():
    globals()[_name] = lambda change=_change: Functional(change)


def embedding():
    return Embedding()


def rolled_embedding():
    return Embedding(lambda e: e.roll(5, 1))


def normalised_embedding():
    return Embedding(F.normalize)


def few_classes():
    return Functional(lambda y: y[:, :7])


def half():
    return Functional(lambda y: y.half())
