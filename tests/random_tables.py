"""Strategies of hypothesis for mapping files: random tables that are legal."""

import msgspec
from hypothesis import strategies as st

from porter.mapping.files import load_variant
from porter.mapping.schema import VariantMapping
from porter.network.detection import Anchors, Detection
from porter.network.network import build_network
from porter.network.nodes import endpoint_names
from porter.network.segmentation import Segmentation
from porter.network.spec import TAIL_ACTIVATIONS, BlockRow, Pointwise, Stem, TailLayer

ACTIVATION = st.sampled_from(["relu", "hard_swish", "relu6"])


@st.composite
def block(draw, stage):
    fused = draw(st.booleans())
    expansion = draw(st.sampled_from([1, 2, "7/3"]))
    return BlockRow(
        stage=stage,
        kernel=draw(st.sampled_from([1, 3, 5])),
        expansion=expansion,
        out=draw(st.sampled_from([8, 16])),
        se=not fused and draw(st.booleans()),
        activation=draw(ACTIVATION),
        stride=1 if fused and expansion == 1 else draw(st.sampled_from([1, 2])),
        fused=fused,
        skip=draw(st.booleans()),
    )


@st.composite
def tails(draw):
    """Layers of a classifier: none, the dense one, or several with others before and behind it."""
    others = st.sampled_from(
        [TailLayer("dense", out=12), TailLayer("batch_norm", epsilon=1e-3)]
        + [
            TailLayer("activation", activation=name, slope=0.2 if name == "leaky_relu" else None)
            for name in TAIL_ACTIVATIONS
        ]
    )
    if draw(st.booleans()):
        return []
    return [
        *draw(st.lists(others, max_size=4)),
        TailLayer("dense"),
        *draw(st.lists(others.filter(lambda one: one.kind != "dense"), max_size=1)),
    ]


@st.composite
def mappings(draw):
    """A whole mapping: slim's names over a random table, with a head or none."""
    stages = [0]
    for _ in range(draw(st.integers(0, 3))):
        stages.append(stages[-1] + draw(st.integers(0, 1)))
    blocks = [draw(block(stage)) for stage in stages]
    last = draw(st.none() | st.builds(Pointwise, st.just(24), ACTIVATION))
    top = draw(st.none() | st.builds(Pointwise, st.just(16), ACTIVATION)) if last else None
    stem = Stem(draw(st.sampled_from([1, 3])), draw(st.sampled_from([1, 2])), 8, draw(ACTIVATION))
    slim = load_variant("small_100")
    table = msgspec.structs.replace(slim.network, stem=stem, blocks=blocks, last=last, head=top)
    made = msgspec.structs.replace(
        slim, variant="random", network=table, timm=None, keras=None, url=None, training=None, classes={}
    )
    made = msgspec.convert(msgspec.to_builtins(made), VariantMapping)
    network = build_network(made)
    taps = [name for name in endpoint_names(network, 0) if name.endswith(("expansion_output", "depthwise_output"))]
    kind = draw(st.sampled_from(["classifier", "segmenter", "detector"])) if taps else "classifier"
    if kind == "segmenter":
        window, step = [draw(st.integers(1, 4)), draw(st.integers(1, 9))], [draw(st.integers(1, 2)), 1]
        head = Segmentation(8, window, step, draw(st.sampled_from([1e-5, 1e-3])), draw(st.sampled_from(taps)))
        return msgspec.structs.replace(made, segmentation=head)
    if kind == "detector":
        extra = draw(st.sampled_from([[], [16], [16, 24]]))
        head = Detection(draw(st.sampled_from(taps)), extra, Anchors(0.2, 0.95, [1.0, 2.0]), [10.0, 10.0, 5.0, 5.0])
        return msgspec.structs.replace(made, detection=head, scope="FeatureExtractor/MobilenetV3")
    pooling, predictions = draw(st.sampled_from(["average", "max"])), draw(st.sampled_from(["softmax", "sigmoid"]))
    table = msgspec.structs.replace(made.network, pooling=pooling, tail=draw(tails()), predictions=predictions)
    return msgspec.structs.replace(made, network=table)
