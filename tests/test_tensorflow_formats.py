"""Every TensorFlow format, written by TensorFlow itself: inspect, convert and verify each."""

import tarfile
from functools import partial

import numpy as np
import pytest
from conftest import FOLDERS, same_bits

import porter
from porter.errors import CheckpointError
from porter.mapping.apply import carry_out
from porter.parity.demo import demo_variables
from porter.port import plan_port
from porter.sources import open_checkpoint

pytestmark = pytest.mark.tensorflow
VARIANT = "small_minimal_100"  # the fewest variables


@pytest.fixture(scope="module")
def values():
    return demo_variables(VARIANT, classes=11)


def graph_variables(v1, values, partitions=1):
    """``values`` as variables of the current graph, each in ``partitions`` slices along its last axis."""
    for name, value in values.items():
        sliced = partitions > 1 and value.ndim

        def initial(shape, dtype=None, partition_info=None, value=value):
            offset = partition_info.var_offset if partition_info else [0] * value.ndim
            return value[tuple(slice(start, start + size) for start, size in zip(offset, shape))]

        partitioner = v1.fixed_size_partitioner(partitions, axis=value.ndim - 1) if sliced else None
        v1.get_variable(name, value.shape, value.dtype, initializer=initial, partitioner=partitioner)


def save_graph(tf, folder, values, write_version=2, sharded=False, partitions=1):
    v1 = tf.compat.v1
    with tf.Graph().as_default(), v1.Session() as session:
        graph_variables(v1, values, partitions)
        session.run(v1.global_variables_initializer())
        saver = v1.train.Saver(write_version=write_version, sharded=sharded)
        saver.save(session, str(folder / "model.ckpt"), global_step=7, write_meta_graph=False)
    return folder


def tracked(tf, values):
    """A module that owns the variables under attributes of other names, as a user's code would."""
    module = tf.Module()
    module.layers = [tf.Variable(value, name=name) for name, value in values.items()]
    return module


def object_based(tf, folder, values):
    module = tracked(tf, values)
    tf.train.Checkpoint(model=module).save(str(folder / "ckpt"))
    return folder


def saved_model_2(tf, folder, values):
    tf.saved_model.save(tracked(tf, values), str(folder / "saved"))
    return folder / "saved"


def saved_model_1(tf, folder, values):
    v1 = tf.compat.v1
    with tf.Graph().as_default(), v1.Session() as session:
        graph_variables(v1, values)
        session.run(v1.global_variables_initializer())
        builder = v1.saved_model.Builder(str(folder / "saved"))
        builder.add_meta_graph_and_variables(session, ["serve"])
        builder.save()
    return folder / "saved"


FORMATS = {
    "V2": save_graph,
    "V2, sharded": lambda *a: save_graph(*a, sharded=True),
    "V2, partitioned": lambda *a: save_graph(*a, partitions=3),
    "V1": lambda *a: save_graph(*a, write_version=1),
    "V1, sharded": lambda *a: save_graph(*a, write_version=1, sharded=True),
    "V1, partitioned": lambda *a: save_graph(*a, write_version=1, partitions=3),
    "object-based": object_based,
    "SavedModel, TensorFlow 2": saved_model_2,
    "SavedModel, TensorFlow 1": saved_model_1,
}


@pytest.fixture(params=FORMATS)
def source(request, tf, tmp_path, values):
    return FORMATS[request.param](tf, tmp_path, values)


@pytest.mark.parametrize("kind", FORMATS)
def test_values(tf, tmp_path, values, kind):
    """One variable of every shape that there is, and of every kind."""
    some = {(value.ndim, name.rpartition("/")[2]): name for name, value in values.items()}
    some = {name: values[name] for name in some.values()}
    assert len(some) >= 8
    opened = open_checkpoint(FORMATS[kind](tf, tmp_path, some))
    assert set(opened) == set(some)
    for name, value in some.items():
        assert opened[name].shape == value.shape
        assert same_bits(opened[name].read(), value), name


QUICK = ("SavedModel, TensorFlow 2",)


@pytest.mark.parametrize(
    "source", [pytest.param(f, marks=() if f in QUICK else pytest.mark.slow) for f in FORMATS], indirect=True
)
def test_inspect_convert_verify(source, values, run, tmp_path):
    assert f"variant   {VARIANT}, 11 classes" in run("inspect", source).out
    ran = run("convert", source, "-o", tmp_path / "a.pth")
    assert ran.code == 0, ran.err
    assert "none left over" in ran.out
    verdict = porter.verify(source, tmp_path / "a.pth", reference="tf.nn", sizes=[(33, 40)])
    assert verdict.passed


@pytest.mark.parametrize("kind", ["frozen", "meta", "tarball"])
def test_released_formats(shared, run, tmp_path, kind):
    folder = shared / FOLDERS["small_075"]
    given, reference = {
        "frozen": (folder / f"{folder.name}.pb", "frozen graph"),
        "meta": (folder / "ema" / "model-497500.meta", "meta graph"),
        "tarball": (tmp_path / "v3.tgz", "frozen graph"),
    }[kind]
    if kind == "tarball":
        with tarfile.open(tmp_path / "v3.tgz", "w:gz", compresslevel=1) as archive:
            for name in (f"{folder.name}.pb", "ema"):  # and without the slots of the training run, half of it
                archive.add(folder / name, f"{folder.name}/{name}")
    assert "variant   small_075, 1001 classes" in run("inspect", given).out
    assert run("convert", given, "-o", tmp_path / "a.pth").code == 0
    verdict = porter.verify(given, tmp_path / "a.pth", reference=reference.split()[0], sizes=[(64, 65)])
    assert verdict.reference.startswith(reference)
    assert verdict.passed


@pytest.mark.parametrize(
    "dtype", ["float64", "int32", "int64", "uint8", "int8", "int16", "bool", "complex64", "float16", "bfloat16"]
)
def test_v1_dtypes(tf, tmp_path, dtype):
    values = np.random.default_rng(0).integers(0, 2, (3, 5))
    v1 = tf.compat.v1
    with tf.Graph().as_default(), v1.Session() as session:
        v1.get_variable("v", initializer=tf.cast(tf.constant(values), dtype), use_resource=True)
        session.run(v1.global_variables_initializer())
        try:
            v1.train.Saver(write_version=1).save(session, str(tmp_path / "m"), write_meta_graph=False)
        except tf.errors.OpError as error:
            pytest.skip(f"TensorFlow writes no V1 {dtype}: {type(error).__name__}")
    expected = tf.cast(tf.constant(values), dtype).numpy()  # TensorFlow's own V1 reader knows fewer dtypes
    assert same_bits(open_checkpoint(tmp_path / "m")["v"].read(), expected)


def test_v1_named_in_every_way(tf, tmp_path, values):
    folder = save_graph(tf, tmp_path, values, write_version=1, sharded=True)
    shard = next(folder.glob("model.ckpt-7-00000-of-*"))
    for given in (folder, folder / "checkpoint", folder / "model.ckpt-7", shard):
        opened = open_checkpoint(given)
        assert opened.format == "v1"
        assert opened.step == 7
        assert opened.files == [shard]


def test_v1_missing_shard_and_damage(tf, tmp_path, values):
    folder = save_graph(tf, tmp_path, values, write_version=1)
    file = folder / "model.ckpt-7"
    renamed = folder / "model.ckpt-7-00000-of-00002"
    whole = file.read_bytes()
    renamed.write_bytes(whole)
    with pytest.raises(CheckpointError, match="model.ckpt-7-00001-of-00002: missing shard; fetch all 2"):
        open_checkpoint(renamed)
    file.write_bytes(whole[: len(whole) // 2] + bytes([whole[len(whole) // 2] ^ 1]) + whole[len(whole) // 2 + 1 :])
    with pytest.raises(CheckpointError, match="model.ckpt-7: checksum mismatch in the block at byte"):
        [variable.read() for variable in open_checkpoint(file).values()]
    file.write_bytes(whole[:-1])
    with pytest.raises(CheckpointError):
        open_checkpoint(file)


def test_v1_opening_reads_no_values(tf, tmp_path, values):
    """Damage anywhere but in the list of tensors goes unnoticed until that tensor is read."""
    folder = save_graph(tf, tmp_path, values, write_version=1)
    file = folder / "model.ckpt-7"
    whole = bytearray(file.read_bytes())
    whole[len(whole) // 2] ^= 1
    file.write_bytes(whole)
    assert len(open_checkpoint(file)) == len(values)


def test_object_based_optimizer_state_is_set_aside(tf, tmp_path, values):
    module = tracked(tf, {name: value for name, value in values.items() if name != "global_step"})
    optimizer = tf.keras.optimizers.SGD(momentum=0.9)
    optimizer.build(module.trainable_variables)
    tf.train.Checkpoint(model=module, optimizer=optimizer).save(str(tmp_path / "ckpt"))
    opened = open_checkpoint(tmp_path)
    assert set(opened) == set(values) - {"global_step"}
    assert set(opened.set_aside.values()) == {"optimizer state", "object graph", "save counter"}
    assert plan_port(opened).plan.variant == VARIANT


def test_object_based_averages(tf, tmp_path):
    average = tf.train.ExponentialMovingAverage(0.9)
    variable = tf.Variable([1.0, 2.0], name="scope/w")
    average.apply([variable])
    variable.assign([5.0, 6.0])
    tf.train.Checkpoint(variable=variable, average=average.average(variable)).save(str(tmp_path / "ckpt"))
    assert open_checkpoint(tmp_path)["scope/w"].read().tolist() == [1, 2]
    assert open_checkpoint(tmp_path, "raw")["scope/w"].read().tolist() == [5, 6]


@pytest.mark.parametrize("served", ["w", "w/ExponentialMovingAverage"])
def test_a_saved_model_says_which_weights_it_serves(tf, tmp_path, served):
    """One that was written in training has both, and its graph computes with one of them."""
    v1, numbers = tf.compat.v1, {"w": 5, "w/ExponentialMovingAverage": 1}
    with tf.Graph().as_default(), v1.Session() as session:
        image = v1.placeholder(tf.float32, [None, 2, 2, 3], "image")
        made = {name: v1.get_variable(name, initializer=np.full((1, 1, 3, 4), n, "f")) for name, n in numbers.items()}
        out = tf.nn.conv2d(image, made[served], 1, "SAME")
        session.run(v1.global_variables_initializer())
        v1.saved_model.simple_save(session, str(tmp_path / "m"), {"image": image}, {"out": out})
    found = {weights: open_checkpoint(tmp_path / "m", weights)["w"].read().max() for weights in ("auto", "ema", "raw")}
    assert found == {"auto": numbers[served], "ema": 1, "raw": 5}


@pytest.mark.parametrize("tags", [[["train"], ["serve"]], [["train"], []], [["train"]], [[], ["serve"]]])
def test_the_graph_that_is_served(tf, tmp_path, tags):
    """A SavedModel has a graph for each set of tags. The last one given here is the one that is served."""
    v1 = tf.compat.v1
    builder = v1.saved_model.Builder(str(tmp_path / "m"))
    for number, tag in enumerate(tags):
        with tf.Graph().as_default(), v1.Session() as session:
            image = v1.placeholder(tf.float32, [None, 2, 2, 3], "image")
            found = tf.nn.conv2d(image, v1.get_variable("w", (1, 1, 3, 4)), 1, "SAME")
            out = (tf.nn.relu6 if tag is tags[-1] else tf.nn.relu)(found)
            signature = v1.saved_model.predict_signature_def({"image": image}, {"out": out})
            session.run(v1.global_variables_initializer())
            add = builder.add_meta_graph if number else partial(builder.add_meta_graph_and_variables, session)
            add(tags=tag, signature_def_map={"serving_default": signature})
    builder.save()
    graph = open_checkpoint(tmp_path / "m").graph
    assert [one.kind for one in graph.behind(graph.by_weight["w"])] == ["relu6"]


def test_names_that_are_not_unique_stay_paths(tf, tmp_path):
    pair = [tf.Variable(float(i), name="same") for i in range(2)]
    tf.train.Checkpoint(pair=pair).save(str(tmp_path / "ckpt"))
    opened = open_checkpoint(tmp_path)
    assert {name: float(v.read()) for name, v in opened.items()} == {"pair/0": 0.0, "pair/1": 1.0}


@pytest.mark.slow
def test_same_state_dict_from_every_format(tf, tmp_path, values):
    def tensors(name):
        folder = tmp_path / name.replace(" ", "")
        folder.mkdir()
        port = plan_port(FORMATS[name](tf, folder, values))
        return carry_out(port.plan, port.checkpoint).arrays

    expected = tensors("V2")
    for name in FORMATS:
        if name != "V2":
            found = tensors(name)
            assert all(same_bits(found[entry], value) for entry, value in expected.items()), name


def test_saved_model_without_variables(tmp_path):
    (tmp_path / "saved_model.pb").write_bytes(b"")
    with pytest.raises(CheckpointError, match="saved_model.pb: without its variables"):
        open_checkpoint(tmp_path)
