"""V2 checkpoints: our reader against TensorFlow's, our writer read by TensorFlow, and damage."""

import numpy as np
import pytest
from conftest import same_bits
from hypothesis import given
from hypothesis import strategies as st

from porter.errors import CheckpointError
from porter.sources import open_checkpoint, protos
from porter.sources.bundle_writer import write_bundle
from porter.sources.slices import slice_key
from porter.sources.sstable import masked_crc32c, read_table
from porter.sources.sstable_writer import table_bytes

DTYPES = [
    "float32", "float64", "float16", "bfloat16", "int8", "uint8", "int16", "uint16", "int32", "uint32",
    "int64", "uint64", "bool", "complex64", "complex128", "float8_e5m2", "float8_e4m3fn", "int4", "uint4",
]  # fmt: skip


def tf_saver_checkpoint(tf, prefix, variables, **saver_options):
    """Write ``variables`` (a function making them) with TensorFlow's own Saver."""
    v1 = tf.compat.v1
    with tf.Graph().as_default(), v1.Session() as session:
        variables(v1)
        session.run(v1.global_variables_initializer())
        v1.train.Saver(**saver_options).save(session, str(prefix), write_meta_graph=False)
    return tf.train.load_checkpoint(str(prefix))


def assert_same_as_tensorflow(prefix, reader):
    opened = open_checkpoint(prefix)
    names = set(reader.get_variable_to_shape_map())
    assert {variable.stored_as for variable in opened.values()} | set(opened.set_aside) == names
    for name, variable in opened.items():
        values = reader.get_tensor(variable.stored_as)
        assert variable.shape == values.shape
        assert same_bits(variable.read(), np.asarray(values)), name


@pytest.mark.tensorflow
def test_every_shared_tensor_equals_tensorflows(released, tf):
    _, folder = released
    for index in sorted(folder.glob("*/*.index")):
        prefix = index.with_suffix("")
        reader = tf.train.load_checkpoint(str(prefix))
        assert_same_as_tensorflow(prefix, reader)
        if prefix.parent.name == "pristine":
            for name, variable in open_checkpoint(prefix, weights="raw").items():
                assert same_bits(variable.read(), reader.get_tensor(name))


@pytest.mark.tensorflow
def test_every_dtype_equals_tensorflows(tf, tmp_path):
    random = np.random.default_rng(0)

    def variables(v1):
        for dtype in DTYPES:
            values = random.integers(0, 2, (3, 5)).astype(tf.as_dtype(dtype).as_numpy_dtype)
            v1.get_variable(f"scope/{dtype}", initializer=tf.constant(values, dtype), use_resource=True)
        v1.get_variable("scalar", initializer=1.5)
        v1.get_variable("empty", initializer=tf.zeros((0, 4)))

    reader = tf_saver_checkpoint(tf, tmp_path / "model", variables)
    assert_same_as_tensorflow(tmp_path / "model", reader)


@pytest.mark.tensorflow
def test_sharded_equals_tensorflows(tf, tmp_path):
    v1 = tf.compat.v1
    with tf.Graph().as_default():
        for i in range(7):
            with tf.device(f"/cpu:{i % 3}"):
                v1.get_variable(f"v{i}", (11, i + 1))
        config = v1.ConfigProto(device_count={"CPU": 3})
        with v1.Session(config=config) as session:
            session.run(v1.global_variables_initializer())
            v1.train.Saver(sharded=True).save(session, str(tmp_path / "model"), write_meta_graph=False)
    assert len(list(tmp_path.glob("model.data-*-of-00003"))) == 3
    assert_same_as_tensorflow(tmp_path / "model", tf.train.load_checkpoint(str(tmp_path / "model")))


@pytest.mark.tensorflow
@pytest.mark.parametrize("shards", [2, 5, 80])
def test_partitioned_equals_tensorflows(tf, tmp_path, shards):
    """80 slices make starts that need two bytes in the slice keys; axis 1 leaves axis 0 whole."""

    def variables(v1):
        for axis in (0, 1):
            partitioner = v1.fixed_size_partitioner(shards, axis=axis)
            v1.get_variable(f"part{axis}", (97, 101), partitioner=partitioner, use_resource=True)

    reader = tf_saver_checkpoint(tf, tmp_path / "model", variables)
    assert_same_as_tensorflow(tmp_path / "model", reader)


@pytest.mark.tensorflow
@pytest.mark.parametrize("shards", [1, 3])
def test_tensorflow_reads_what_we_write(tf, tmp_path, shards):
    random = np.random.default_rng(0)
    variables = {f"scope_{i % 7}/v{i}": random.standard_normal((i % 5, 3)).astype("f") for i in range(400)}
    variables["step"] = np.array(7, np.int64)
    write_bundle(tmp_path / "model-7", variables, shards=shards)
    assert tf.train.latest_checkpoint(str(tmp_path)) == str(tmp_path / "model-7")
    reader = tf.train.load_checkpoint(str(tmp_path))
    assert set(reader.get_variable_to_shape_map()) == set(variables)
    for name, values in variables.items():
        assert same_bits(np.asarray(reader.get_tensor(name)), values)


@given(st.lists(st.tuples(st.integers(0, 2**62), st.none() | st.integers(0, 2**62)), max_size=4))
def test_slice_keys_keep_order(extents):
    """The encoding is order preserving: a larger start sorts later."""
    if extents:
        (start, length), *rest = extents
        assert slice_key("a/b", ((start, length), *rest)) < slice_key("a/b", ((start + 1, length), *rest))


def rewrite_index(prefix, change):
    """Rewrite the index of ``prefix``, its entries changed by ``change(entries)``."""
    path = prefix.with_name(prefix.name + ".index")
    entries = dict(read_table(path.read_bytes(), ""))
    change(entries)
    path.write_bytes(table_bytes(sorted(entries.items())))


def change_entry(entries, name, **values):
    entry = protos.BundleEntryProto.FromString(entries[name.encode()])
    for key, value in values.items():
        setattr(entry, key, value)
    entries[name.encode()] = entry.SerializeToString()


def test_big_endian(tmp_path):
    values = np.arange(12, dtype="f").reshape(3, 4)
    write_bundle(tmp_path / "m", {"v": values})
    data = values.astype(">f4").tobytes()
    (tmp_path / "m.data-00000-of-00001").write_bytes(data)

    def change(entries):
        header = protos.BundleHeaderProto.FromString(entries[b""])
        header.endianness = 1
        entries[b""] = header.SerializeToString()
        change_entry(entries, "v", crc32c=masked_crc32c(data))

    rewrite_index(tmp_path / "m", change)
    assert same_bits(open_checkpoint(tmp_path / "m")["v"].read(), values)


def test_opening_reads_no_data(tmp_path):
    """Damaged slots do not matter to a reader that does not want them."""
    write_bundle(tmp_path / "m", {"a": np.ones(4, "f"), "a/RMSProp": np.ones(4, "f")})
    data = tmp_path / "m.data-00000-of-00001"
    data.write_bytes(data.read_bytes()[:16] + b"\xff" * 16)
    opened = open_checkpoint(tmp_path / "m")
    assert opened["a"].read().tolist() == [1, 1, 1, 1]
    with pytest.raises(CheckpointError, match="m.data-00000-of-00001: tensor a/RMSProp: checksum"):
        opened["a/RMSProp"].read()


def test_flipped_byte_in_any_tensor_is_noticed(demo_copy):
    data = demo_copy.with_name("model-1000.data-00000-of-00001")
    intact = data.read_bytes()
    opened = open_checkpoint(demo_copy)
    offset = 0
    for name in sorted(opened, key=str.encode):  # our writer lays tensors out in this order
        position = offset + opened[name].nbytes // 2
        with data.open("r+b", buffering=0) as file:
            file.seek(position)
            file.write(bytes([intact[position] ^ 1]))
            with pytest.raises(CheckpointError, match=f"{data}: tensor {name}: checksum mismatch"):
                opened[name].read()
            file.seek(position)
            file.write(intact[position : position + 1])
        offset += opened[name].nbytes
    assert offset == len(intact)


def test_missing_shard(demo_copy):
    demo_copy.with_name("model-1000.data-00000-of-00001").unlink()
    with pytest.raises(CheckpointError, match=r"data-00000-of-00001: missing shard of model-1000\.index"):
        open_checkpoint(demo_copy)


def test_truncated_data(demo_copy):
    data = demo_copy.with_name("model-1000.data-00000-of-00001")
    data.write_bytes(data.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match="truncated: tensor global_step ends at byte"):
        open_checkpoint(demo_copy)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"shard_id": 3}, "impossible shard"),
        ({"offset": -4}, "truncated"),
        ({"offset": 2**62}, "truncated"),
        ({"size": 4}, "4 bytes stored for shape"),
        ({"dtype": 2}, "bytes stored for shape"),
    ],
)
def test_impossible_entries(demo_copy, values, message):
    rewrite_index(demo_copy, lambda entries: change_entry(entries, "MobilenetV3/Conv/weights", **values))
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(demo_copy)


def test_unknown_dtype_is_listed_but_not_read(demo_copy):
    rewrite_index(demo_copy, lambda entries: change_entry(entries, "global_step", dtype=77))
    variable = open_checkpoint(demo_copy)["global_step"]
    assert variable.dtype == "dtype 77"
    with pytest.raises(CheckpointError, match="cannot be read"):
        variable.read()


def test_header_of_a_later_version(demo_copy):
    def change(entries):
        header = protos.BundleHeaderProto.FromString(entries[b""])
        header.version.min_consumer = 2
        entries[b""] = header.SerializeToString()

    rewrite_index(demo_copy, change)
    with pytest.raises(CheckpointError, match="bundle readers of version 2"):
        open_checkpoint(demo_copy)
