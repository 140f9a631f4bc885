"""A step of training: the port and TensorFlow, and that the verifier notices what it is there to notice."""

import json

import numpy as np
import pytest
import torch
from conftest import FOLDERS
from random_networks import checkpoint_with_head

import porter
from porter.errors import PorterError
from porter.exports.convert import convert
from porter.mapping.axes import to_target
from porter.mapping.options import PortOptions
from porter.parity.demo import write_demo_checkpoint
from porter.parity.references.training_step import GRADIENT
from porter.port import plan_port
from porter.sources.bundle_writer import write_bundle

pytestmark = pytest.mark.tensorflow
SMALL = {"train": True, "dtype": "float64", "sizes": [(32, 32)]}
PYTHON = """
import torch, porter
def made():
    model = porter.create_model({given})
    {change}
    return model
"""


@pytest.fixture(scope="module")
def small(shared):
    return shared / FOLDERS["small_075"]


@pytest.mark.parametrize(
    "variant",
    [pytest.param(v, marks=() if v in ("small_075", "small_minimal_100") else pytest.mark.slow) for v in FOLDERS],
)
def test_a_step_is_tensorflows(tf, shared, variant):
    verdict = porter.verify(shared / FOLDERS[variant], train=True)
    assert verdict.passed, verdict.sentence()
    assert verdict.reference == "tf.nn graph in training mode"
    names = [row.endpoint for row in verdict.rows]
    model = porter.create_model(variant)
    assert model.drop_rate > 0  # dropout is off, or it would be another network at each step
    assert {n.removeprefix(GRADIENT) for n in names if n.startswith(GRADIENT)} == set(dict(model.named_parameters()))
    statistics = {name for name, _ in model.named_buffers() if "running" in name}
    assert set(names) == {*(n for n in names if n.startswith(GRADIENT)), *statistics, "Logits", "loss"}


@pytest.mark.slow
def test_layouts_and_artifacts(tf, small, tmp_path):
    """A folded gate has other weights, and so other gradients; the background takes part in the loss if it is kept."""
    for layout, background in (("timm", True), ("slim", False)):
        path, _ = convert(small, tmp_path / f"{layout}.pth", layout=layout, keep_background=background)
        assert porter.verify(small, path, keep_background=background, **SMALL).passed
    with pytest.raises(PorterError, match=r"entry classifier.weight is \(1001, 1024\), the port has \(1000, 1024\)"):
        porter.verify(small, tmp_path / "timm.pth", **SMALL)


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["lraspp_small", "ssdlite_small"])
def test_heads(tf, variant, tmp_path_factory):
    assert porter.verify(checkpoint_with_head(variant, tmp_path_factory), train=True).passed


@pytest.mark.slow
@pytest.mark.parametrize("name", ["deeplab_v3_small", "deeplab_v3_large", "ssd_v3_small"])
def test_heads_of_the_original_code(tf, unpacked, name):
    folder, _ = unpacked(name)
    assert porter.verify(folder / "model.ckpt-0", train=True).passed


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["edgetpu_075", "edgetpu_100"])
def test_edgetpu(tf, variant, tmp_path):
    assert porter.verify(write_demo_checkpoint(tmp_path, variant), train=True).passed


@pytest.mark.slow
def test_trained_weights_and_raw_ones(tf, shared, small):
    assert porter.verify(shared.parent / "real" / FOLDERS["small_100"], train=True).passed
    assert porter.verify(small / "pristine", weights="raw", train=True).passed


@pytest.mark.parametrize("momentum", [pytest.param(0.99, marks=pytest.mark.slow), 0.9])
def test_keras_own_model(tf, tmp_path, momentum):
    """Random layers are off, and each batch norm has the momentum that the file states."""
    layers = tf.keras.layers
    head = [layers.GlobalAveragePooling2D(), layers.Dropout(0.5), layers.Dense(9), layers.BatchNormalization()]
    base = tf.keras.applications.MobileNetV3Small((64, 64, 3), minimalistic=True, include_top=False, weights=None)
    model = tf.keras.Sequential([base, *head, layers.ReLU(), layers.Dense(4, activation="softmax")])
    for layer in model._flatten_layers():
        if hasattr(layer, "momentum"):
            layer.momentum = 0.995
    model.layers[-3].momentum = momentum
    model.save(tmp_path / "m.keras")
    verdict = porter.verify(tmp_path / "m.keras", train=True, dtype="float64")
    assert verdict.reference.startswith("Keras 3")
    assert verdict.passed, verdict.sentence()
    ported = porter.create_model(str(tmp_path / "m.keras"))
    assert ported.bn1.momentum == pytest.approx(0.005)
    assert ported.classifier[1].momentum == pytest.approx(1 - momentum)


@pytest.mark.slow
def test_keras_2(tf, tmp_path):
    keras = pytest.importorskip("tf_keras")
    from keras_models import build

    build(keras).save(tmp_path / "m.keras")
    verdict = porter.verify(tmp_path / "m.keras", train=True)
    assert verdict.reference.startswith("Keras 2")
    assert verdict.passed, verdict.sentence()


def test_timms_momentum_is_named(tf, timm, small, tmp_path, run):
    """timm's class has another momentum: everything but the statistics is equal."""
    path, _ = convert(small, tmp_path / "x.pth")
    named = "timm:tf_mobilenetv3_small_075"
    options = ("--dtype", "float64", "--size", "32", "--weights-file", path, "--json")
    ran = run("verify", "--train", small, named, *options)
    assert ran.code == 1, ran.err
    found = json.loads(ran.out)
    assert found["sentence"].startswith("in training, another function, from bn1.running_mean on (")
    [cause] = found["causes"]
    assert (cause["names"], cause["values"]) == (["batch norm momentum 0.1 instead of 0.003"], "the statistics'")
    assert all(("running" in row["endpoint"]) != row["passed"] for row in found["rows"])


@pytest.mark.parametrize(
    ("change", "first", "cause"),
    [
        (
            "for m in model.modules(): setattr(m, 'momentum', 0.997)",
            "bn1.running_mean",
            ["batch norm momentum 0.997, TensorFlow's decay instead of 0.003"],
        ),
        ("se = model.blocks[1][0].se; se.gate.forward = lambda x: type(se.gate).forward(se.gate, x).detach()", "", []),
        pytest.param("model.bn1.train = lambda mode=True: model.bn1", "bn1.running_mean", [], marks=pytest.mark.slow),
    ],
)
def test_faults_of_training_alone(three_blocks, tmp_path, change, first, cause):
    """Each of these ports has parity at inference."""
    mapping = three_blocks.mapping
    given = f"{three_blocks.variant!r}, {str(three_blocks.source)!r}, mapping={str(mapping)!r}"
    (tmp_path / "made.py").write_text(PYTHON.format(given=given, change=change))
    named = f"{tmp_path / 'made.py'}:made"
    assert porter.verify(three_blocks.source, named, mapping=mapping, dtype="float64", sizes=[(32, 32)]).passed
    verdict = porter.verify(three_blocks.source, named, mapping=mapping, **SMALL)
    assert not verdict.passed
    assert [what.what for what in verdict.causes] == cause
    if first:
        assert verdict.first_divergence().endpoint == first
    else:
        wrong = [row.endpoint for row in verdict.rows if not row.passed]
        assert all(name.startswith(GRADIENT) for name in wrong)
        assert GRADIENT + "blocks.1.0.se.conv_expand.weight" in wrong


@pytest.mark.slow
def test_lost_precision_fails_on_every_batch(tf, small, tmp_path):
    path, _ = convert(small, tmp_path / "x.pth")
    change = "conv = model.conv_stem; conv.forward = lambda x: type(conv).forward(conv, x.bfloat16().to(x.dtype))"
    (tmp_path / "made.py").write_text(PYTHON.format(given=repr(str(path)), change=change))
    named = f"{tmp_path / 'made.py'}:made"
    verdict = porter.verify(small, named, train=True, dtype="float32", sizes=[(32, 32)])
    assert verdict.as_exact is False


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        ("v3-small_224_0.75_float.tflite", {}, "has no batch norms"),
        ("", {"fold_bn": True}, "has no batch norms"),
        ("", {"reference": "frozen"}, "is compared with tf.nn, or with a Keras file's own model"),
        ("", {"deployed": True}, "without deploy and images"),
    ],
)
def test_refusals(tf, small, source, options, message):
    with pytest.raises(PorterError, match=message):
        porter.verify(small / source, train=True, **options)


def test_a_program_has_no_gradients(tf, small, tmp_path):
    convert(small, tmp_path / "x.onnx")
    with pytest.raises(PorterError, match="has no gradients"):
        porter.verify(small, tmp_path / "x.onnx", train=True)


def test_other_names_are_refused(tf, small, tmp_path):
    (tmp_path / "made.py").write_text(
        "import torch\ndef made(): return torch.nn.Sequential(torch.nn.Conv2d(3, 9, 1), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())"
    )
    with pytest.raises(PorterError, match="entry conv_stem.weight is missing"):
        porter.verify(small, f"{tmp_path / 'made.py'}:made", **SMALL)


RATE, DECAY_RATE, WEIGHT_DECAY, AVERAGE = 0.045, 0.98, 4e-5, 0.999


def tensorflows_steps(tf, source, batches):
    """Weights, and averages of them, after a step on each of ``batches``; TensorFlow's own optimizer and averages."""
    from functools import partial

    from porter.parity.references import training_step
    from porter.parity.references.tf_nn import Net, forward, slim_names

    checkpoint = porter.open_checkpoint(source, "raw")
    port = plan_port(checkpoint)
    names = slim_names(port)
    variables = {want.source: tf.Variable(checkpoint[want.source].read().astype("float64")) for want in names.values()}
    trained = {name: one for name, one in variables.items() if "moving" not in name}
    squares, momenta = (
        {name: tf.Variable(checkpoint[f"{name}/{slot}"].read().astype("float64")) for name in trained}
        for slot in ("RMSProp", "RMSProp_1")
    )
    averages = {name: one.numpy() for name, one in variables.items()}
    for number, images in enumerate(batches):
        fetch = lambda local: variables[names[local].source]  # noqa: E731
        with tf.GradientTape() as tape:
            net = Net(tf, port.network, True, fetch, partial(training_step._trained, tf))
            logits = dict(forward(net, fetch, lambda _at, x: x, tf.constant(images)))["Logits"]
            labels = tf.range(len(images))
            loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels=labels, logits=logits))
            loss += sum(WEIGHT_DECAY * tf.nn.l2_loss(one) for name, one in trained.items() if name.endswith("weights"))
        for name, gradient in tape.gradient(loss, trained).items():
            # What tf.train.RMSPropOptimizer runs, which rounds its constants to float32
            held = {"var": trained[name].handle, "ms": squares[name].handle, "mom": momenta[name].handle}
            rate = RATE * DECAY_RATE**number
            epsilon, decay = (tf.constant(value, tf.float64) for value in (1.0, 0.9))
            tf.raw_ops.ResourceApplyRMSProp(
                **held, lr=tf.constant(rate, tf.float64), rho=decay, momentum=decay, epsilon=epsilon, grad=gradient
            )
        averages = {name: AVERAGE * averages[name] + (1 - AVERAGE) * one.numpy() for name, one in variables.items()}
    steps = {step.source: step for step in plan_port(checkpoint, PortOptions(keep_background=True)).plan.steps}
    return [
        {steps[name].target: to_target(steps[name].axes, np.asarray(value)) for name, value in found.items()}
        for found in (variables, averages)
    ]


@pytest.fixture(scope="module")
def slots(small, tmp_path_factory):
    """A training checkpoint in the middle of its training: its slots say something."""
    checkpoint, random = porter.open_checkpoint(small / "pristine", "raw"), np.random.default_rng(0)
    values = {name: variable.read() for name, variable in checkpoint.items()}
    for name, value in values.items():
        if name.endswith("/RMSProp"):
            values[name] = random.uniform(0.1, 1, value.shape).astype(np.float32)
        elif name.endswith("/RMSProp_1"):
            values[name] = random.normal(0, 1e-4, value.shape).astype(np.float32)
    prefix = tmp_path_factory.mktemp("slots") / "model.ckpt-7"
    write_bundle(prefix, values)
    return prefix


def optimizer_for(timm, model):
    """timm's, with weight decay for weights alone, as slim has it."""
    from timm.optim import RMSpropTF

    decayed = [value for value in model.parameters() if value.ndim > 1]
    others = [value for value in model.parameters() if value.ndim == 1]
    groups = [{"params": others, "weight_decay": 0.0}, {"params": decayed, "weight_decay": WEIGHT_DECAY}]
    return RMSpropTF(groups, lr=RATE, alpha=0.9, momentum=0.9, eps=1.0)


@pytest.mark.slow
def test_ten_steps_of_the_recipe(tf, timm, slots):
    """The optimizer continues where TensorFlow's left off, and both go the same way in float64."""
    from timm.utils import ModelEmaV3

    random = np.random.default_rng(1)
    batches = [random.uniform(-1, 1, (8, 64, 64, 3)) for _ in range(10)]
    theirs, their_averages = tensorflows_steps(tf, slots, batches)
    model = porter.create_model("small_075", slots, weights="raw", layout="slim", keep_background=True, dropout=0.0)
    model = model.double().train()
    optimizer, averages = optimizer_for(timm, model), ModelEmaV3(model, decay=AVERAGE)
    optimizer.load_state_dict(porter.optimizer_state(slots, model, optimizer))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for number, images in enumerate(batches):
        for group in optimizer.param_groups:
            group["lr"] = RATE * DECAY_RATE**number
        optimizer.zero_grad()
        logits = model(torch.from_numpy(images).permute(0, 3, 1, 2))
        torch.nn.functional.cross_entropy(logits, torch.arange(8)).backward()
        optimizer.step()
        averages.update(model)
    for ours, expected in ((model, theirs), (averages.module, their_averages)):
        for name, value in ours.state_dict().items():
            if name in expected:
                scale = np.abs(expected[name]).max()
                assert np.abs(value.numpy() - expected[name]).max() < 1e-10 * scale, name
    assert sum(not torch.equal(before[name], value) for name, value in model.state_dict().items()) > len(theirs)


def test_slots_lie_where_the_weights_do(timm, slots, tmp_path):
    checkpoint = porter.open_checkpoint(slots)
    model = porter.create_model("small_075", slots)
    optimizer = optimizer_for(timm, model)
    found = porter.optimizer_state(slots, model, optimizer)
    optimizer.load_state_dict(found)
    scope = "MobilenetV3/expanded_conv_1"
    depthwise = optimizer.state[model.blocks[1][0].conv_dw.weight]
    stored = checkpoint[f"{scope}/depthwise/depthwise_weights/RMSProp"].read()
    assert np.array_equal(depthwise["square_avg"].numpy(), stored.transpose(2, 3, 0, 1))
    assert depthwise["step"] == 497500
    classifier = optimizer.state[model.classifier.weight]["momentum_buffer"].numpy()
    stored = checkpoint["MobilenetV3/Logits/Conv2d_1c_1x1/weights/RMSProp_1"].read()[0, 0].T
    assert np.array_equal(classifier, stored[1:])
    gated = optimizer.state[model.blocks[0][0].conv_pw.weight]
    stored = [checkpoint[f"MobilenetV3/expanded_conv/project/weights/RMSProp{end}"].read() for end in ("", "_1")]
    ratio = 0.16667 * 6
    for key, value, power in (("square_avg", stored[0], -2), ("momentum_buffer", stored[1], 1)):
        np.testing.assert_allclose(gated[key].numpy(), value.transpose(3, 2, 0, 1) * ratio**power, rtol=2e-7)
    fresh = porter.create_model("small_075", slots, num_classes=3)
    optimizer = optimizer_for(timm, fresh)
    optimizer.load_state_dict(porter.optimizer_state(slots, fresh, optimizer))
    assert not optimizer.state[fresh.classifier.weight]
    assert optimizer.state[fresh.conv_stem.weight]


def test_another_optimizer(timm, slots):
    model = porter.create_model("small_075", slots)
    for optimizer, message in (
        (torch.optim.AdamW(model.parameters()), "the slots are of RMSProp, not centered"),
        (torch.optim.RMSprop(model.parameters(), centered=True), "the slots are of RMSProp, not centered"),
        (optimizer_for(timm, porter.create_model("small_075")), "none of the optimizer's parameters"),
    ):
        with pytest.raises(PorterError, match=message):
            porter.optimizer_state(slots, model, optimizer)


@pytest.mark.parametrize(
    ("variant", "source", "message"),
    [
        ("small_075", "ema", "holds no slots of RMSProp; use a training checkpoint, such as pristine/"),
        ("large_075", "pristine", "is not a checkpoint of this model"),
    ],
)
def test_no_slots(small, variant, source, message):
    model = porter.create_model(variant)
    optimizer = torch.optim.RMSprop(model.parameters())
    with pytest.raises(PorterError, match=message):
        porter.optimizer_state(small / source, model, optimizer)
