"""Bilinear resizing with ``align_corners`` in float64, which TensorFlow's own operation gives in float32 alone."""

from __future__ import annotations

from typing import Any

from porter.parity.references.live_tensorflow import tensorflow

DOUBLE = 2  # DT_DOUBLE of tensorflow/core/framework/types.proto


def resize_exactly(tf: Any, x: Any, size: Any) -> Any:
    """(N, h, w, C) float64 at ``size``, an int32 tensor of height and width.

    With corner pixels on corner pixels, output i lies at i * (inputs - 1) / (outputs - 1), and the weight of an input
    falls from 1 to 0 over one pixel (tensorflow/core/kernels/image/resize_bilinear_op.cc).
    """
    before = tf.shape(x)[1:3]

    def weights(axis: int) -> Any:
        inputs, outputs = (tf.cast(sides[axis], tf.float64) for sides in (before, size))
        scale = tf.where(outputs > 1, (inputs - 1) / tf.maximum(outputs - 1, 1), tf.zeros((), tf.float64))
        positions = tf.range(outputs, dtype=tf.float64) * scale
        return tf.maximum(1 - tf.abs(positions[:, None] - tf.range(inputs, dtype=tf.float64)[None]), 0)

    return tf.einsum("nHwc,Ww->nHWc", tf.einsum("nhwc,Hh->nHwc", x, weights(0)), weights(1))


def splice_resize(graph: Any, node: Any) -> None:
    """Put ``resize_exactly`` into ``graph`` (a GraphDef) for ``node``, under its name."""
    tf = tensorflow()
    with tf.Graph().as_default() as own:
        x = tf.compat.v1.placeholder(tf.float64, [None, None, None, None], "x")
        size = tf.compat.v1.placeholder(tf.int32, [2], "size")
        resize_exactly(tf, x, size)
        definition, last = own.as_graph_def(), own.get_operations()[-1].name
    given = {"x": node.input[0], "size": node.input[1]}
    for made in definition.node:
        if made.name in given:
            continue
        copy = graph.node.add()
        copy.CopyFrom(made)
        copy.name = node.name if made.name == last else f"{node.name}/float64/{made.name}"
        del copy.input[:]
        copy.input.extend(given.get(source, f"{node.name}/float64/{source}") for source in made.input)
