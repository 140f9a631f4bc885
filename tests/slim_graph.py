"""slim's inference graph, written with slim's names for operations: what ``freeze_graph`` makes of a checkpoint."""

import numpy as np

from porter.mapping.files import load_variant
from porter.network.network import build_network


def frozen(tf, variables, variant="small_075", gate=0.16667, epsilon=1e-3, image=(None, None, None, 3), mapping=None):
    """The GraphDef of ``variant``, or of ``mapping``, with ``variables`` (slim's names) as constants."""
    mapping = mapping or load_variant(variant)
    network = build_network(mapping)
    scope = mapping.scope
    raw = tf.raw_ops

    def constant(name, values):
        return tf.constant(values, name=name)

    def activated(kind, at, x):
        if kind != "hard_swish":
            name = {"relu": "Relu", "relu6": "Relu6"}[kind]
            return getattr(raw, name)(features=x, name=f"{at}/{name}")
        shifted = raw.AddV2(x=x, y=constant(f"{at}/hard_swish/add/y", np.float32(3)), name=f"{at}/hard_swish/add")
        clipped = raw.Relu6(features=shifted, name=f"{at}/hard_swish/Relu6")
        sixth = constant(f"{at}/hard_swish/mul/y", np.float32(1 / 6))
        return raw.Mul(x=x, y=raw.Mul(x=clipped, y=sixth, name=f"{at}/hard_swish/mul"), name=f"{at}/hard_swish/mul_1")

    def convolved(at, x, stride=1):
        strides = [1, stride, stride, 1]
        if at.endswith("/depthwise"):
            weights = constant(f"{at}/depthwise_weights", variables[f"{at}/depthwise_weights"])
            x = raw.DepthwiseConv2dNative(
                input=x, filter=weights, strides=strides, padding="SAME", name=f"{at}/depthwise"
            )
        else:
            weights = constant(f"{at}/weights", variables[f"{at}/weights"])
            x = raw.Conv2D(input=x, filter=weights, strides=strides, padding="SAME", name=f"{at}/Conv2D")
        names = ("gamma", "beta", "moving_mean", "moving_variance")
        scale, offset, mean, variance = (
            constant(f"{at}/BatchNorm/{name}", variables[f"{at}/BatchNorm/{name}"]) for name in names
        )
        return raw.FusedBatchNormV3(
            x=x,
            scale=scale,
            offset=offset,
            mean=mean,
            variance=variance,
            epsilon=epsilon,
            is_training=False,
            name=f"{at}/BatchNorm/FusedBatchNormV3",
        )[0]

    def biased(at, x):
        x = raw.Conv2D(
            input=x,
            filter=constant(f"{at}/weights", variables[f"{at}/weights"]),
            strides=[1, 1, 1, 1],
            padding="SAME",
            name=f"{at}/Conv2D",
        )
        return raw.BiasAdd(value=x, bias=constant(f"{at}/biases", variables[f"{at}/biases"]), name=f"{at}/BiasAdd")

    def block_output(block, x):
        at, inputs = f"{scope}/{block.scope}", x
        if block.expands:
            stride = block.stride if block.kind == "fused" else 1
            x = activated(block.activation, f"{at}/expand", convolved(f"{at}/expand", x, stride))
        if block.depthwise:
            x = activated(block.activation, f"{at}/depthwise", convolved(f"{at}/depthwise", x, block.stride))
        if block.squeezed:
            se = f"{at}/squeeze_excite"
            axes = constant(f"{se}/Mean/reduction_indices", np.array([1, 2], np.int32))
            mean = raw.Mean(input=x, axis=axes, keep_dims=True, name=f"{se}/Mean")
            hidden = raw.Relu(features=biased(f"{se}/Conv", mean), name=f"{se}/Conv/Relu")
            shifted = raw.AddV2(
                x=biased(f"{se}/Conv_1", hidden),
                y=constant(f"{se}/Conv_1/add/y", np.float32(3)),
                name=f"{se}/Conv_1/add",
            )
            clipped = raw.Relu6(features=shifted, name=f"{se}/Conv_1/Relu6")
            slope = constant(f"{se}/Conv_1/mul/y", np.float32(gate))
            x = raw.Mul(x=x, y=raw.Mul(x=clipped, y=slope, name=f"{se}/Conv_1/mul"), name=f"{se}/mul")
        x = convolved(f"{at}/project", x)
        return raw.AddV2(x=x, y=inputs, name=f"{at}/add") if block.residual else x

    with tf.Graph().as_default() as graph:
        x = tf.compat.v1.placeholder(tf.float32, image, name="input")
        x = activated(network.stem_activation, f"{scope}/Conv", convolved(f"{scope}/Conv", x, network.stem_stride))
        for block in network.blocks:
            x = block_output(block, x)
        x = activated(network.last_activation, f"{scope}/Conv_1", convolved(f"{scope}/Conv_1", x))
        ones, window = [1, 1, 1, 1], [1, 7, 7, 1]
        if network.embedding:
            x = raw.AvgPool(value=x, ksize=window, strides=ones, padding="VALID", name=f"{scope}/AvgPool2D/AvgPool")
            x = activated(network.embedding_activation, f"{scope}/Conv_2", biased(f"{scope}/Conv_2", x))
            window = ones
        x = raw.AvgPool(value=x, ksize=window, strides=ones, padding="VALID", name=f"{scope}/Logits/AvgPool2D")
        x = biased(f"{scope}/Logits/Conv2d_1c_1x1", x)
        x = raw.Squeeze(input=x, axis=[1, 2], name=f"{scope}/Logits/Squeeze")
        raw.Softmax(logits=x, name=f"{scope}/Predictions/Softmax")
    return graph.as_graph_def()
