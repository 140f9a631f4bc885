"""Segmenters and detectors as modules of their own kind, for ``verify SOURCE tests/head_ports.py:NAME``.

The network is ours, of the environment's VARIANT and SOURCE; each port returns what it gives in another form.
"""

import torch
import torch.nn.functional as F
from ports import plain
from torch import nn

from porter.network.detection import decoded
from porter.network.nodes import anchors


class After(nn.Module):
    """Our network, and ``change`` behind it."""

    def __init__(self, change):
        super().__init__()
        self.net, self.change = plain(), change

    def forward(self, x):
        return self.change(x, self.net)


def own():
    return plain()


def semantic():
    return After(lambda x, net: {"out": net.semantic(x)})


def channels_last():
    return After(lambda x, net: net(x).permute(0, 2, 3, 1))


def without_align_corners():
    return After(lambda x, net: F.interpolate(net.semantic(x), x.shape[2:], mode="bilinear"))


def classes_rolled():
    return After(lambda x, net: net(x).roll(1, 1))


def boxes_and_scores():
    def change(x, net):
        encodings, logits = net(x)
        boxes = decoded(encodings.numpy(), anchors(net.network, *x.shape[2:]), net.network.head.coder)
        return {"boxes": torch.from_numpy(boxes), "scores": logits.sigmoid()}

    return After(change)


def boxes_in_another_order():
    return After(lambda x, net: [one.flip(1) for one in net(x)])


def x_before_y():
    return After(lambda x, net: (net(x)[0][..., [1, 0, 3, 2]], net(x)[1]))


def softmax_of_boxes():
    return After(lambda x, net: (net(x)[0], net(x)[1].softmax(-1)))
