"""Graphs that do something else than compute: refused by name, before TensorFlow runs any of them."""

import io
import shutil
import sys
import tarfile
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))

from slim_graph import frozen

from porter.mapping.files import load_mapping
from porter.parity.demo import random_variables
from porter.parity.references.graph_guard import ALLOWED

pytestmark = pytest.mark.tensorflow


@pytest.fixture(scope="module")
def honest(tf, three_blocks):
    """The GraphDef of a network of three blocks, which has every operation of a whole one."""
    mapping = load_mapping(three_blocks.mapping)
    return frozen(tf, random_variables(mapping), mapping=mapping)


@pytest.fixture
def run(run, three_blocks):
    """Run a command on files of this network."""
    return lambda command, *arguments: run(command, *arguments, *three_blocks.own)


def node(graph, name):
    return next(n for n in graph.node if n.name == name)


def text(graph, name, value):
    made = graph.node.add(name=name, op="Const")
    made.attr["dtype"].type = 7  # DT_STRING
    made.attr["value"].tensor.dtype = 7
    made.attr["value"].tensor.string_val.append(value.encode())
    return name


def write_file(graph, target):
    made = graph.node.add(name="payload", op="WriteFile")
    made.input.extend([text(graph, "path", str(target)), text(graph, "content", "pwned")])
    return "payload"


def behind_a_control_edge(graph, target):
    node(graph, "MobilenetV3/Conv/Conv2D").input.append("^" + write_file(graph, target))


def in_the_data(graph, target):
    """The stem's images pass through an operation that reads a file."""
    made = graph.node.add(name="payload", op="ReadFile", input=[text(graph, "path", str(target))])
    relu = node(graph, "MobilenetV3/Conv/hard_swish/add")
    relu.input.append(f"^{made.name}")


def python_code(graph, _target):
    relu = node(graph, "MobilenetV3/Conv/hard_swish/Relu6")
    relu.op = "PyFunc"


def variable(graph, _target):
    made = graph.node.add(name="state", op="TemporaryVariable")
    node(graph, "MobilenetV3/Conv_1/Conv2D").input.append(f"^{made.name}")


def function_call(graph, _target):
    made = graph.node.add(name="call", op="StatefulPartitionedCall")
    graph.library.function.add().signature.name = "evil"
    node(graph, "MobilenetV3/Conv_1/Conv2D").input.append(f"^{made.name}")


def huge_constant(graph, _target):
    """64 bytes that ask for 4 GiB."""
    proto = node(graph, "MobilenetV3/Conv/hard_swish/add/y").attr["value"].tensor
    for side in (1 << 15, 1 << 15):
        proto.tensor_shape.dim.add(size=side)


def unknown_input(graph, _target):
    node(graph, "MobilenetV3/Conv_1/Conv2D").input.append("^nowhere")


def circle(graph, _target):
    node(graph, "MobilenetV3/expanded_conv/depthwise/depthwise").input[0] = "MobilenetV3/expanded_conv/depthwise/Relu"


ATTACKS = {
    behind_a_control_edge: "operation WriteFile (payload)",
    in_the_data: "operation ReadFile (payload)",
    python_code: "the network has hard_swish",  # refused on reading, before the graph is loaded
    variable: "operation TemporaryVariable (state)",
    function_call: "operation StatefulPartitionedCall (call)",
    huge_constant: "the network has hard_swish",
    unknown_input: "needs nowhere, which is not in the graph",
    circle: "depends on itself",
}


def changed(honest, attack, target):
    graph = type(honest)()
    graph.CopyFrom(honest)
    attack(graph, target)
    return graph.SerializeToString()


def test_honest_graph_is_the_same_function(run, honest, tmp_path):
    (tmp_path / "g.pb").write_bytes(honest.SerializeToString())
    ran = run("verify", tmp_path / "g.pb", "--size", "64")
    assert ran.code == 0, ran.err + ran.out
    assert "frozen graph (g.pb)" in ran.out


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.__name__)
def test_refused_by_name(run, honest, tmp_path, attack):
    target = tmp_path / "written"
    (tmp_path / "g.pb").write_bytes(changed(honest, attack, target))
    ran = run("verify", tmp_path / "g.pb", "--size", "33")
    assert ran.code == 2, ran.out
    assert ATTACKS[attack] in ran.err
    assert ran.err.count("\n") == 1
    assert not target.exists()
    for command in (["release", tmp_path / "g.pb", "--out", tmp_path / "dist"],):
        assert run(*command).code == 2
        assert not target.exists()
        assert not (tmp_path / "dist").exists()
    if "operation" in ATTACKS[attack]:
        assert "reference tf.nn" in ran.err
        assert run("verify", tmp_path / "g.pb", "--reference", "tf.nn", "--size", "33").code == 0
        assert not target.exists()


def test_in_a_tarball(run, honest, tmp_path):
    target = tmp_path / "written"
    data = changed(honest, behind_a_control_edge, target)
    with tarfile.open(tmp_path / "hostile.tgz", "w:gz") as archive:
        member = tarfile.TarInfo("v3/frozen.pb")
        member.size = len(data)
        archive.addfile(member, io.BytesIO(data))
    ran = run("verify", tmp_path / "hostile.tgz")
    assert ran.code == 2
    assert "operation WriteFile" in ran.err
    assert not target.exists()


def test_evaluate_does_not_run_it_either(run, honest, tmp_path):
    from PIL import Image

    target = tmp_path / "written"
    (tmp_path / "g.pb").write_bytes(changed(honest, behind_a_control_edge, target))
    (tmp_path / "images" / "n01440764").mkdir(parents=True)
    Image.new("RGB", (64, 64)).save(tmp_path / "images" / "n01440764" / "a.png")
    ran = run("evaluate", f"tf:{tmp_path / 'g.pb'}", tmp_path / "images", "--workers", "0")
    assert ran.code == 2
    assert "operation WriteFile" in ran.err
    assert not target.exists()


def test_what_no_endpoint_needs_is_not_imported(run, honest, tmp_path):
    graph = type(honest)()
    graph.CopyFrom(honest)
    write_file(graph, tmp_path / "written")
    (tmp_path / "g.pb").write_bytes(graph.SerializeToString())
    assert run("verify", tmp_path / "g.pb", "--size", "33").code == 0
    assert not (tmp_path / "written").exists()


def test_operations_on_the_list_have_no_state(tf):
    """TensorFlow's own registry says so of every one (a placeholder is fed)."""
    from tensorflow.python.framework import op_def_registry

    for name in ALLOWED:
        assert not op_def_registry.get(name).is_stateful, name


def test_meta_with_a_file_operation(run, tf, three_blocks, honest, tmp_path):
    """The graph of a ``.meta`` goes through the same door; nor is its saver run, which names files."""
    folder = tmp_path / "ema"
    folder.mkdir()
    for path in three_blocks.source.parent.glob(f"{three_blocks.source.name}.*"):
        shutil.copy(path, folder / path.name.replace(three_blocks.source.name, "model-1000"))
    meta = tf.compat.v1.MetaGraphDef()
    meta.graph_def.CopyFrom(honest)
    meta.saver_def.restore_op_name = "save/restore_all"
    (folder / "model-1000.meta").write_bytes(meta.SerializeToString())
    ran = run("verify", folder, "--size", "33")
    assert ran.code == 0, ran.err
    assert "meta graph" in ran.out
    behind_a_control_edge(meta.graph_def, tmp_path / "written")
    (folder / "model-1000.meta").write_bytes(meta.SerializeToString())
    ran = run("verify", folder, "--size", "33")
    assert ran.code == 2
    assert "operation WriteFile" in ran.err
    assert not (tmp_path / "written").exists()


def test_memory_is_bounded(run, honest, tmp_path):
    """Allowed operations that ask for memory without end: a padding of 2^31 pixels."""
    import numpy as np

    graph = type(honest)()
    graph.CopyFrom(honest)
    stem = node(graph, "MobilenetV3/Conv/hard_swish/add")
    paddings = graph.node.add(name="paddings", op="Const")
    paddings.attr["dtype"].type = 3
    proto = paddings.attr["value"].tensor
    proto.dtype = 3
    proto.tensor_shape.dim.add(size=4)
    proto.tensor_shape.dim.add(size=2)
    proto.tensor_content = np.array([[0, 0], [0, 1 << 15], [0, 1 << 15], [0, 0]], np.int32).tobytes()
    pad = graph.node.add(name="pad", op="Pad", input=[stem.input[0], "paddings"])
    pad.attr["T"].type = 1
    pad.attr["Tpaddings"].type = 3
    stem.input[0] = "pad"
    (tmp_path / "g.pb").write_bytes(graph.SerializeToString())
    ran = run("verify", tmp_path / "g.pb")
    assert ran.code == 2
    assert ran.err.startswith(f"Error: {tmp_path / 'g.pb'}: ")
