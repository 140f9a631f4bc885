"""What files state besides their weights, computed and compared with what the files compute."""

import json

import numpy as np
import pytest
from conftest import SHARED
from graph_runner import run_graph

from porter.sources import open_checkpoint
from porter.sources.tflite_graph import read_graph

pytestmark = pytest.mark.tensorflow
REAL = SHARED.parent / "real"


@pytest.fixture(scope="module")
def real():
    if not REAL.is_dir():
        pytest.skip(f"no real files at {REAL} (set MNV3_CHECKPOINTS)")
    return REAL


@pytest.fixture(autouse=True)
def _as_read(monkeypatch):
    """The operations as the files have them, before arithmetic is recognised as an activation."""
    monkeypatch.setattr("porter.sources.stored_graph._recognised", lambda operations, outputs: operations)


def interpreter(path, keep=False):
    from ai_edge_litert import interpreter as lite

    runner = lite.Interpreter(
        str(path),
        experimental_op_resolver_type=lite.OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
        experimental_preserve_all_tensors=keep,
    )
    runner.allocate_tensors()
    return runner


def every_pixel(runner):
    """The image of all pixel values, as the file takes it; (1, H, W, 3)."""
    [given] = runner.get_input_details()
    _, height, width, _ = given["shape"]
    pixels = np.resize(np.arange(256), height * width).reshape(1, height, width, 1).repeat(3, 3)
    runner.set_tensor(given["index"], (pixels - 128 * (given["dtype"] == np.int8)).astype(given["dtype"]))
    runner.invoke()
    return pixels.astype(np.float32)


def check_levels(path):
    """All 256 levels of three channels are the interpreter's own."""
    graph, runner = read_graph(path), interpreter(path, keep=True)
    stem = next(operator.inputs[0] for operator in graph.operators if operator.kind == "conv_2d")
    every_pixel(runner)
    [zero], [scale] = graph.tensors[stem].zero_points, graph.tensors[stem].scales
    expected = (runner.get_tensor(stem).reshape(-1, 3)[:256].astype(int) - zero) * scale
    stated = open_checkpoint(path).graph
    assert stated.takes_pixels
    assert np.array_equal(np.broadcast_to(stated.levels, (3, 256)).T, expected)
    return stated


@pytest.mark.parametrize(
    "name", ["smart_gallery_int8", "v3-small_224_1.0_uint8", "lraspp_user/seg_graph_i8", "lraspp_user/seg_graph_q"]
)
def test_levels_of_real_files(real, name):
    check_levels(real / f"{name}.tflite")


def full_int8(tf, layers, taken, path, size=32):
    """A Keras model of ``layers`` in whole numbers, calibrated on pixels."""
    random = np.random.default_rng(0)
    model = tf.keras.Sequential([tf.keras.Input((size, size, 3)), *layers])
    converter = tf.lite.TFLiteConverter.from_keras_model(model)
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    batch = [random.integers(0, 256, (1, size, size, 3)).astype("f") for _ in range(4)]
    batch.append(np.resize(np.float32([0, 255]), batch[0].shape))
    converter.representative_dataset = lambda: ([images] for images in batch)
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
    converter.inference_input_type = converter.inference_output_type = getattr(tf, taken)
    path.write_bytes(converter.convert())


@pytest.mark.parametrize(
    ("preprocessing", "taken"),
    [
        (("Rescaling", 1 / 127.5, -1), "uint8"),
        (("Rescaling", 1 / 127.5, -1), "float32"),
        (("Rescaling", 1 / 64, -1), "int8"),
        (("Rescaling", [0.01, 0.008, 0.007], [-1, -1.2, -0.5]), "uint8"),
        (("Normalization", -1, [123.0, 116.0, 103.0], [58.0**2, 57.0**2, 56.0**2]), "uint8"),
        (("Normalization", -1, [123.0, 116.0, 103.0], [58.0**2, 57.0**2, 56.0**2]), "int8"),
    ],
)
def test_levels_of_keras_models(tf, tmp_path, preprocessing, taken):
    name, *values = preprocessing
    layer = getattr(tf.keras.layers, name)(*values)
    path = tmp_path / "m.tflite"
    full_int8(tf, [layer, tf.keras.layers.Conv2D(4, 3, 2, padding="same")], taken, path)
    assert any(operation.kind in ("mul", "sub") for operation in read_graph(path).operators)
    check_levels(path)


def test_no_levels_where_floats_are_between(tf, tmp_path):
    """A sigmoid on 8 bits is no kernel that is known here."""
    path = tmp_path / "m.tflite"
    layers = [tf.keras.layers.Rescaling(1 / 255), tf.keras.layers.Activation("sigmoid"), tf.keras.layers.Conv2D(4, 3)]
    full_int8(tf, layers, "uint8", path)
    stated = open_checkpoint(path).graph
    assert stated.takes_pixels
    assert stated.levels == ()


def layers_of_all_kinds(keras):
    """Dilations, paddings, poolings, activations and a head, as float Keras models have them."""
    layers = keras.layers
    image = keras.Input((36, 32, 3), batch_size=2)
    x = layers.Rescaling(1 / 127.5, -1)(image)
    x = layers.Conv2D(8, 3, strides=2, padding="same", activation="relu6")(x)
    x = layers.ZeroPadding2D(((0, 1), (1, 2)))(x)
    x = layers.DepthwiseConv2D(3, strides=2, padding="valid")(x)
    x = layers.Activation("hard_swish" if hasattr(keras.activations, "hard_swish") else "relu")(x)
    y = layers.Conv2D(8, 3, dilation_rate=2, padding="same", activation="relu")(x)
    y = layers.DepthwiseConv2D(5, dilation_rate=2, padding="same")(y)
    gate = layers.GlobalAveragePooling2D(keepdims=True)(y)
    gate = layers.Conv2D(8, 1, activation="hard_sigmoid")(gate)
    x = layers.Add()([x, layers.Multiply()([y, gate])])
    x = layers.Concatenate()([layers.AveragePooling2D(2)(x), layers.MaxPooling2D(2)(x)])
    x = layers.Conv2D(8, 2, padding="valid", activation="elu")(x)
    x = layers.Concatenate()([layers.Flatten()(x), layers.GlobalMaxPooling2D()(x)])
    x = layers.Dense(6, activation="tanh")(x)
    x = layers.LeakyReLU(0.1)(x)
    return keras.Model(image, layers.Dense(5, activation="softmax")(x))


def test_a_keras_model_as_tflite(tf, tmp_path):
    model = layers_of_all_kinds(tf.keras)
    path = tmp_path / "m.tflite"
    path.write_bytes(tf.lite.TFLiteConverter.from_keras_model(model).convert())
    opened = open_checkpoint(path)
    images = np.random.default_rng(0).uniform(0, 255, (2, 36, 32, 3)).astype("f")
    [found] = run_graph(tf, opened.graph, lambda name: opened[name].read(), images, "tflite").values()
    assert np.abs(found - np.asarray(model(images))).max() < 1e-5
    assert not opened.graph.takes_pixels  # the file does not say
    assert {(2, 2)} == {operation.dilation for operation in opened.graph.layers()} - {(1, 1)}
    assert opened.graph.operations[opened.graph.outputs[0]].kind == "softmax"


def test_a_real_tflite_and_its_metadata(tf, real):
    """The embedder takes (pixel - 0) / 255 by its metadata, and brings that to [-1, 1] itself."""
    opened = open_checkpoint(real / "mobilenet_v3_small_075_224_embedder.tflite")
    runner = interpreter(opened.path)
    pixels = np.random.default_rng(0).integers(0, 256, (1, 224, 224, 3)).astype("f")
    runner.set_tensor(runner.get_input_details()[0]["index"], pixels / 255)
    runner.invoke()
    expected = runner.get_tensor(runner.get_output_details()[0]["index"])
    [found] = run_graph(tf, opened.graph, lambda name: opened[name].read(), pixels, "tflite").values()
    assert np.abs(found - expected).max() < 1e-5 * np.abs(expected).max()
    assert opened.graph.takes_pixels
    scaling = [(operation.kind, operation.constant) for operation in opened.graph.in_order[1:4]]
    assert scaling == [("divide", (255,)), ("multiply", (2,)), ("subtract", (1,))]


def test_the_authors_activations_are_ranges(real):
    """Their 8-bit file states relu and relu6 by the ranges of its tensors alone."""
    stated = open_checkpoint(real / "v3-small_224_1.0_uint8.tflite").graph
    kinds = [operation.kind for operation in stated.operations.values()]
    relus = sum(kind == "relu" for kind in kinds)
    assert (relus, kinds.count("depthwise"), kinds.count("hard_swish")) == (14, 11, 19)
    with_relu = [o for o in stated.operations.values() if o.kind == "relu"]
    assert all(stated.operations[o.inputs[0]].kind in ("convolution", "depthwise") for o in with_relu)


def computed(tf, opened, images, wanted=None):
    return run_graph(tf, opened.graph, lambda name: opened[name].read(), images, wanted=wanted)


def freeze(tf, model, path, size):
    """``model`` as a frozen graph."""
    from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

    function = tf.function(model, input_signature=[tf.TensorSpec(size, tf.float32)]).get_concrete_function()
    path.write_bytes(convert_variables_to_constants_v2(function).graph.as_graph_def().SerializeToString())


def test_a_keras_model_that_ends_in_a_model(tf, tmp_path):
    """Keras counts the uses of a model within a model from 0 where they are inputs, and from 1 where they are outputs."""
    keras = tf.keras
    taken = keras.Input((8, 8, 3))
    inner = keras.Model(taken, keras.layers.GlobalAveragePooling2D()(keras.layers.Conv2D(4, 3)(taken)))
    taken = keras.Input((8, 8, 3))
    model = keras.Model(taken, inner(keras.layers.Rescaling(1 / 255)(taken)))
    model.save(tmp_path / "m.keras")
    images = np.random.default_rng(0).uniform(0, 255, (2, 8, 8, 3)).astype(np.float32)
    [found] = computed(tf, open_checkpoint(tmp_path / "m.keras"), images).values()
    assert np.abs(found[:, 0, 0] - np.asarray(model(images))).max() < 1e-5


@pytest.mark.parametrize("how", ["frozen", "export", "saved_model", pytest.param("keras 2", marks=pytest.mark.slow)])
def test_keras_models_as_graphs(tf, tmp_path, how):
    """A SavedModel's variables are found through calls of functions, by the names that the bundle gives them."""
    keras = pytest.importorskip("tf_keras") if how == "keras 2" else tf.keras
    images = np.random.default_rng(0).uniform(0, 255, (2, 36, 32, 3)).astype("f")
    whole = layers_of_all_kinds(keras)
    head = keras.layers.BatchNormalization(moving_mean_initializer="ones", beta_initializer="ones")(whole.output)
    norm = keras.layers.BatchNormalization(moving_variance_initializer=keras.initializers.Constant(2.0))
    model = keras.Sequential([keras.Input((36, 32, 3), batch_size=2), norm, keras.Model(whole.input, head)])
    if how == "frozen":
        freeze(tf, model, tmp_path / "m.pb", (2, 36, 32, 3))
    elif how == "export":
        model.export(tmp_path / "m.pb", verbose=False)
    elif how == "saved_model":
        tf.saved_model.save(model, tmp_path / "m.pb")
    else:
        model.save(tmp_path / "m.pb", save_format="tf")
    opened = open_checkpoint(tmp_path / "m.pb")
    [found] = computed(tf, opened, images).values()
    assert np.abs(found - np.asarray(model(images, training=False))).max() < 1e-5
    norms = [operation for operation in opened.graph.in_order if operation.kind == "batch_norm"]
    assert [norm.epsilon for norm in norms] == [0.001, 0.001]


def test_a_real_frozen_graph(tf, real):
    """Against TensorFlow running the file."""
    path = real / "v3-small_224_1.0_float" / "v3-small_224_1.0_float.pb"
    opened = open_checkpoint(path)
    images = np.random.default_rng(0).uniform(-1, 1, (2, 224, 224, 3)).astype("f")
    graph = tf.compat.v1.GraphDef.FromString(path.read_bytes())

    def imported(image):
        output = "MobilenetV3/Logits/Squeeze:0"
        return tf.graph_util.import_graph_def(graph, {"input": image}, [output], name="")

    [expected] = tf.compat.v1.wrap_function(imported, [tf.TensorSpec((2, 224, 224, 3))])(tf.constant(images))
    [found] = computed(tf, opened, images, ["MobilenetV3/Logits/Squeeze"]).values()
    assert np.abs(found - np.asarray(expected)).max() < 1e-4
    assert [layer.weights["weight"] for layer in opened.graph.layers()][
        -1
    ] == "MobilenetV3/Logits/Conv2d_1c_1x1/weights"


def test_the_graph_of_a_training_run(tf, tmp_path):
    """Its .meta holds the optimizer's nodes, and dilated convolutions as TensorFlow 1 built them."""
    v1 = tf.compat.v1

    def get(name, *shape):
        return v1.get_variable(name, shape, initializer=v1.random_normal_initializer(seed=3), use_resource=name == "b")

    with tf.Graph().as_default(), v1.Session() as session:
        image = v1.placeholder(tf.float32, (None, 16, 16, 3), "image")
        x = tf.nn.conv2d(image, get("a", 3, 3, 3, 4), 1, "SAME", name="a/Conv2D")
        norm = {role: get(f"norm/{role}", 4) for role in ("gamma", "beta")}
        x, mean, _ = v1.nn.fused_batch_norm(x, norm["gamma"], norm["beta"], epsilon=0.01, name="norm")
        moving = get("norm/moving_mean", 4)
        update = moving.assign_sub((moving - mean) * 0.1)
        apart = tf.space_to_batch(x, (2, 2), [(2, 2), (2, 2)])
        apart = tf.nn.relu(tf.nn.conv2d(apart, get("b", 3, 3, 4, 4), 1, "VALID") + get("b/bias", 4))
        x = tf.batch_to_space(apart, (2, 2), [(0, 0), (0, 0)])
        x = tf.nn.conv2d(x, get("c", 3, 3, 4, 5), 2, [(0, 0), (1, 2), (0, 1), (0, 0)], name="c/Conv2D")
        logits = tf.identity(tf.reduce_mean(x, (1, 2)) @ get("d", 5, 3), "logits")
        loss = v1.losses.softmax_cross_entropy([[1, 0, 0], [0, 1, 0]], logits)
        with tf.control_dependencies([update]):
            v1.train.MomentumOptimizer(0.1, 0.9).minimize(loss)
        session.run(v1.global_variables_initializer())
        v1.train.Saver().save(session, str(tmp_path / "model.ckpt"), 5)
    opened = open_checkpoint(tmp_path)
    layers = list(opened.graph.layers())
    assert [(o.kind, o.weights["weight"], o.dilation, o.padding) for o in layers] == [
        ("convolution", "a", (1, 1), "same"),
        ("convolution", "b", (2, 2), "same"),
        ("convolution", "c", (1, 1), ((1, 2), (0, 1))),
        ("dense", "d", (1, 1), "same"),
    ]
    [norm] = [operation for operation in opened.graph.in_order if operation.kind == "batch_norm"]
    assert (norm.weights, norm.epsilon) == ({"gamma": "norm/gamma", "beta": "norm/beta"}, 0.01)
    [last] = opened.graph.outputs  # what the loss takes
    assert (opened.graph.operations[last].kind, opened.graph.operations[last].inputs) == ("flatten", (layers[-1].name,))


def test_weights_behind_fake_quantisation(real):
    """A user's frozen graph of quantisation-aware training: folded and rounded weights are not the variables."""
    opened = open_checkpoint(real / "lraspp_user" / "frozen_inference_graph_q.pb")
    assert {*opened} == {*open_checkpoint(real / "lraspp_small_user.pb")}
    norms = [operation for operation in opened.graph.in_order if operation.kind == "batch_norm"]
    assert len(norms) == 35
    for norm in norms:
        layer = opened.graph.operations[norm.inputs[0]]
        scope = layer.weights["weight"].rpartition("/")[0]
        roles = {"gamma": "gamma", "beta": "beta", "mean": "moving_mean", "variance": "moving_variance"}
        assert dict(norm.weights) == {role: f"{scope}/BatchNorm/{name}" for role, name in roles.items()}


def tfjs(graph, folder):
    """``graph`` as TensorFlow.js' converter writes it, constants apart."""
    from google.protobuf.json_format import MessageToDict
    from tensorflow import make_ndarray

    weights, data = [], b""
    for node in graph.node:
        if node.op == "Const":
            values = make_ndarray(node.attr["value"].tensor)
            weights.append({"name": node.name, "shape": list(values.shape), "dtype": str(values.dtype)})
            data += values.tobytes()
            node.attr["value"].tensor.ClearField("tensor_content")
    folder.mkdir()
    (folder / "group1-shard1of1.bin").write_bytes(data)
    manifest = [{"paths": ["group1-shard1of1.bin"], "weights": weights}]
    model = {"format": "graph-model", "modelTopology": MessageToDict(graph), "weightsManifest": manifest}
    (folder / "model.json").write_text(json.dumps(model))
    return folder


def test_a_topology_as_json(tf, tmp_path):
    keras = tf.keras
    model = layers_of_all_kinds(keras)
    freeze(tf, model, tmp_path / "m.pb", (2, 36, 32, 3))
    graph = tf.compat.v1.GraphDef.FromString((tmp_path / "m.pb").read_bytes())
    opened = open_checkpoint(tfjs(graph, tmp_path / "js"))
    images = np.random.default_rng(0).uniform(0, 255, (2, 36, 32, 3)).astype("f")
    [found] = computed(tf, opened, images).values()
    assert np.abs(found - np.asarray(model(images))).max() < 1e-5


def test_fused_nodes_of_a_real_topology(real):
    """Every weight of the detector has its place; float16 constants keep their value."""
    opened = open_checkpoint(real / "centernet" / "centernet.json")
    used = {name for operation in opened.graph.operations.values() for name in operation.weights.values()}
    assert used == {*opened}
    kinds = [operation.kind for operation in opened.graph.operations.values()]
    assert (kinds.count("convolution"), kinds.count("depthwise"), kinds.count("image")) == (63, 26, 1)
    sixth = [operation for operation in opened.graph.operations.values() if operation.constant == (0.1666259765625,)]
    assert len(sixth) == 28
    shallow, deep = (opened.graph.operations[f"tower_0/MobilenetV3/{name}/BatchNorm/FusedBatchNorm"] for name in (
        "Conv", "expanded_conv_14/expand"))  # fmt: skip
    assert (shallow.stride, deep.stride) == ((2, 2), (1, 1))


def test_a_layers_model_has_no_graph(tmp_path):
    """Its topology is a Keras configuration."""
    (tmp_path / "w.bin").write_bytes(bytes(8))
    weights = [{"name": "a", "shape": [2], "dtype": "float32"}]
    model = {"modelTopology": {"model_config": {}}, "weightsManifest": [{"paths": ["w.bin"], "weights": weights}]}
    (tmp_path / "model.json").write_text(json.dumps(model))
    assert open_checkpoint(tmp_path).graph is None
