"""Candidates that are programs: `verify SOURCE x.onnx` and `x.pt2` compute, and do nothing else, under limits."""

import contextlib
import io
import json
import os
import pickle
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Ran
from PIL import Image
from torch import nn

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
from onnx import TensorProto, helper

from porter.errors import ParityError
from porter.parity.candidates.foreign import program
from porter.parity.candidates.programs import exported_program
from porter.parity.references import child
from porter.parity.references.wire import Closed, Header, Request, send


class Payload:
    """A pickle of it runs a program that leaves a mark."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


def constant(name, values):
    return helper.make_node("Constant", [], [name], value=onnx.numpy_helper.from_array(np.array(values)))


def model(nodes, inputs=None, outputs=None):
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", 3, "h", "w"])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", 1000])
    graph = helper.make_graph(
        nodes, "g", [image] if inputs is None else inputs, [logits] if outputs is None else outputs
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()


def logits_of_image():
    """(n, 3, h, w) -> (n, 1000)"""
    return [
        helper.make_node("Flatten", ["image"], ["flat"]),
        *(constant(name, [value]) for name, value in (("from", 0), ("to", 1000), ("axis", 1))),
        helper.make_node("Slice", ["flat", "from", "to", "axis"], ["logits"]),
    ]


def endless():
    carried = [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in ("x", "y")]
    truth = helper.make_tensor_value_info("more", TensorProto.BOOL, [])
    number = helper.make_tensor_value_info("i", TensorProto.INT64, [])
    still = helper.make_tensor_value_info("still", TensorProto.BOOL, [])
    body = helper.make_graph(
        [helper.make_node("Identity", ["more"], ["still"]), helper.make_node("Neg", ["x"], ["y"])],
        "body",
        [number, truth, carried[0]],
        [still, carried[1]],
    )
    return model(
        [
            *logits_of_image()[:-1],
            helper.make_node("Slice", ["flat", "from", "to", "axis"], ["first"]),
            constant("true", True),
            helper.make_node("Loop", ["", "true", "first"], ["logits"], body=body),
        ]
    )


def large():
    """4 GiB of ones, added up."""
    return model(
        [
            *logits_of_image()[:-1],
            helper.make_node("Slice", ["flat", "from", "to", "axis"], ["first"]),
            constant("sides", [1 << 30]),
            helper.make_node("ConstantOfShape", ["sides"], ["ones"]),
            helper.make_node("ReduceSum", ["ones"], ["sum"], keepdims=0),
            helper.make_node("Add", ["first", "sum"], ["logits"]),
        ]
    )


def texts():
    given = helper.make_tensor_value_info("image", TensorProto.STRING, ["n", 3, "h", "w"])
    out = helper.make_tensor_value_info("logits", TensorProto.STRING, ["n", 3, "h", "w"])
    return model([helper.make_node("Identity", ["image"], ["logits"])], [given], [out])


def no_inputs():
    return model([constant("logits", np.zeros((1, 1000), "f"))], inputs=[])


def two_inputs():
    given = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["n", 3, "h", "w"]) for n in ("image", "other")]
    return model(logits_of_image(), given)


def one_vector():
    given = helper.make_tensor_value_info("image", TensorProto.FLOAT, [1000])
    return model([helper.make_node("Identity", ["image"], ["logits"])], [given])


def sequence():
    out = helper.make_tensor_sequence_value_info("logits", TensorProto.FLOAT, None)
    return model([helper.make_node("SequenceConstruct", ["image"], ["logits"])], outputs=[out])


def text_output():
    out = helper.make_tensor_value_info("logits", TensorProto.STRING, [1, 2])
    text = helper.make_tensor("t", TensorProto.STRING, [1, 2], [b"\x1b[31m", b"b"])
    return model([helper.make_node("Constant", [], ["logits"], value=text)], outputs=[out])


def no_outputs_of_classes():
    out = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", 3, "h", "w"])
    return model([helper.make_node("Identity", ["image"], ["logits"])], outputs=[out])


def elsewhere():
    """An initialiser whose values lie in a file that is not beside the graph's."""
    loaded = onnx.load_model_from_string(
        model([*logits_of_image()[:-1], helper.make_node("Add", ["flat", "w"], ["logits"])])
    )
    weight = loaded.graph.initializer.add(name="w", data_type=TensorProto.FLOAT, dims=[8])
    weight.data_location = TensorProto.EXTERNAL
    weight.external_data.add(key="location", value="../../../../../../../../../../etc/passwd")
    weight.external_data.add(key="length", value="32")
    return loaded.SerializeToString()


def verify(run, demo_folder, port):
    began = time.monotonic()
    ran = run("verify", demo_folder, port, "--reference", demo_folder / "expected.npz")
    assert time.monotonic() - began < 60
    assert ran.code == 2, ran.out + ran.err
    assert ran.err.count("\n") == 1, ran.err
    assert "\x1b" not in ran.err
    return ran.err


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (texts, "must take float32 images, (N, 3, H, W) or (N, H, W, 3); takes image: tensor(string)"),
        (no_inputs, "takes no inputs"),
        (two_inputs, "takes image: tensor(float) ['n', 3, 'h', 'w'], other: tensor(float)"),
        (one_vector, "takes image: tensor(float) [1000]"),
        (sequence, "none of its outputs is in floating point: ?"),
        (text_output, "none of its outputs is in floating point: object (1, 2)"),
        (no_outputs_of_classes, "returns logits [1, 3, 75, 64], which no output of the source's network fits"),
        (elsewhere, "ONNX Runtime does not take it"),
        (lambda: b"", "ONNX Runtime does not take it"),
        (lambda: b"\x08\x08" + bytes(999), "ONNX Runtime does not take it"),
    ],
)
def test_graphs_of_onnx(run, demo_folder, tmp_path, made, message):
    (tmp_path / "x.onnx").write_bytes(made())
    assert message in verify(run, demo_folder, tmp_path / "x.onnx")


@pytest.mark.parametrize("place", ["x.onnx.data", "weights.bin", f"below/{'w' * 200}"])
def test_weights_beside_a_graph(tmp_path, place):
    """They are part of what is judged, whatever their files are called."""
    (tmp_path / "below").mkdir()
    nodes = [*logits_of_image()[:-1], helper.make_node("Slice", ["flat", "from", "to", "axis"], ["few"])]
    loaded = onnx.load_model_from_string(model([*nodes, helper.make_node("Add", ["few", "w"], ["logits"])]))
    loaded.graph.initializer.append(onnx.numpy_helper.from_array(np.ones(1000, "f"), "w"))
    onnx.save_model(loaded, tmp_path / "x.onnx", save_as_external_data=True, location=place)
    found = program(tmp_path / "x.onnx", [(75, 64)])
    images = np.random.default_rng(0).uniform(-1, 1, (1, 75, 64, 3)).astype("f")
    [(_, output)] = found.record(images, frozenset(["rounding"]), 0).returned
    assert np.array_equal(output.single, images.transpose(0, 3, 1, 2).reshape(1, -1)[:, :1000] + 1)
    assert sorted(found.digests) == sorted(["x.onnx", place])


def test_names_of_files_beside_a_graph(run, demo_folder, tmp_path):
    """Too long for a file, and 40,000 that overlap: each claims the 4,000 bytes behind it."""
    (tmp_path / "x.onnx").write_bytes(b"\x0a\x08location\x12\xac\x02" + b"a" * 300)
    assert "ONNX Runtime does not take it" in verify(run, demo_folder, tmp_path / "x.onnx")
    names = b"".join(b"\x0a\x08location\x12\xa0\x1f%05d" % number for number in range(40_000))
    (tmp_path / "x.onnx").write_bytes(names)
    assert "names more than 10,000 files of weights" in verify(run, demo_folder, tmp_path / "x.onnx")


@pytest.mark.parametrize("sides", [(60000, 60000), (1, 1 << 30), (0, 224)])
def test_the_size_of_the_images_is_bounded(run, demo_folder, tmp_path, sides):
    """Our own process makes them."""
    given = [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", 3, *sides])]
    (tmp_path / "x.onnx").write_bytes(model(logits_of_image(), given))
    assert f"takes images of {sides[0]}x{sides[1]}; sides from 1 on" in verify(run, demo_folder, tmp_path / "x.onnx")


def test_names_that_are_not_utf_8(run, demo_folder, tmp_path, exported):
    (tmp_path / os.fsdecode(b"\xff\xfe.onnx")).write_bytes(texts())
    assert "ONNX Runtime does not take it" in verify(run, demo_folder, tmp_path / os.fsdecode(b"\xff\xfe.onnx"))
    path = tmp_path / os.fsdecode(b"\xff.pt2")
    write(path, changed(exported, "models/model.json", no_images))
    assert "takes 0 tensors" in verify(run, demo_folder, path)
    (tmp_path / "folder.pt2").mkdir()
    assert "is no regular file" in verify(run, demo_folder, tmp_path / "folder.pt2")


def test_a_graph_takes_its_own_memory(run, demo_folder, tmp_path):
    (tmp_path / "x.onnx").write_bytes(large())
    said = verify(run, demo_folder, tmp_path / "x.onnx")
    assert "does not run on images" in said or "more memory than it may" in said or "does not take it" in said


def test_a_graph_that_never_ends(run, demo_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(child, "SECONDS", 1)
    (tmp_path / "x.onnx").write_bytes(endless())
    assert re.search(r"running it takes more than (1|2|3) s; stopped", verify(run, demo_folder, tmp_path / "x.onnx"))


def test_a_process_that_ended_before_it_was_asked(monkeypatch):
    """Its reason is told, not that the connection is closed."""
    ours, theirs = socket.socketpair()
    send(theirs, Header("started"))
    send(theirs, Header("failed", text="x.onnx: is no graph"))
    theirs.close()
    monkeypatch.setattr(child, "_connect", lambda library: ours)
    with pytest.raises(ParityError, match="x.onnx: is no graph"):
        child.in_child(Request("onnx", b"x.onnx", "x.onnx", 0))


def test_answers_have_one_limit_of_time_together(monkeypatch, tmp_path):
    """Each of many answers in time was never stopped."""
    ours, theirs = socket.socketpair()
    values = np.zeros((1, 1, 1, 1), "f")

    def slow():
        with contextlib.suppress(Closed):
            send(theirs, Header("started"))
            for number in range(100):
                time.sleep(0.3)
                send(theirs, Header("values", str(number), dtype="float32", shape=[1, 1, 1, 1]), values)

    monkeypatch.setattr(child, "_connect", lambda _: ours)
    monkeypatch.setattr(child, "SECONDS", 1.0)
    threading.Thread(target=slow, daemon=True).start()
    process = child.Child(Request("onnx", b"", "x.onnx", 0))
    found = []
    with pytest.raises(ParityError, match=re.escape("x.onnx: running it takes more than 1 s; stopped")):
        found.extend(process.run(values, ["Logits"]))
    theirs.close()


def test_a_signal_ends_it(demo_folder, tmp_path):
    """And nothing of it goes on."""
    (tmp_path / "x.onnx").write_bytes(endless())
    command = [sys.executable, "-m", "porter", "verify", demo_folder, tmp_path / "x.onnx"]
    running = subprocess.Popen([*map(str, command), "--reference", str(demo_folder / "expected.npz")])
    busy = _wait_for(lambda: [pid for pid in _grandchildren(running.pid) if _seconds(pid) > 0.3])
    running.send_signal(signal.SIGTERM)
    assert running.wait(10) == 143
    _wait_for(lambda: not any(_seconds(pid) for pid in busy))


def _grandchildren(pid):
    """Processes that the server of the process ``pid`` has forked."""
    parents = {int(path.parent.name): int(_status(path.parent.name)[1]) for path in Path("/proc").glob("[0-9]*/stat")}
    return [child for child, server in parents.items() if parents.get(server) == pid]


def _seconds(pid):
    """Of processor time; 0 for one that has ended."""
    status = _status(pid)
    return 0 if status[0] == "Z" else int(status[11]) / os.sysconf("SC_CLK_TCK")


def _status(pid):
    """State, parent and so on: the fields of /proc/PID/stat behind the name."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ["Z", "0"]


def _wait_for(condition, seconds=40):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := condition():
            return found
        time.sleep(0.1)
    raise AssertionError("did not come")


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, 2)
        self.classifier = nn.Linear(4, 1000)

    def forward(self, x):
        return self.classifier(torch.relu(self.conv(x)).mean((2, 3)))


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Members of a .pt2, by their name."""
    path = tmp_path_factory.mktemp("pt2") / "small.pt2"
    torch.export.save(torch.export.export(Small().eval(), (torch.zeros(2, 3, 75, 64),)), path)
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def write(path, members, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


def changed(members, ending, change):
    """``members`` with the JSON of that ``ending`` changed."""
    [name] = [name for name in members if name.endswith(ending)]
    content = json.loads(members[name])
    change(content)
    return members | {name: json.dumps(content).encode()}


def nodes(program):
    return program["graph_module"]["graph"]["nodes"]


def same_as(path, weights):
    """Whether the program gives what the network of these ``weights`` gives."""
    network = Small().eval()
    network.load_state_dict(weights)
    images = np.random.default_rng(0).uniform(-1, 1, (1, 75, 64, 3)).astype("f")
    runner = child.in_child(Request("pt2", os.fsencode(path), str(path), 1 << 30))
    [(name, found)] = runner.run(images, [])
    with torch.no_grad():
        expected = network(torch.from_numpy(images).permute(0, 3, 1, 2)).numpy()
    return (name, runner.size) == ("its output", (75, 64)) and np.abs(found.values - expected).max() < 1e-6


def weights_of(members):
    """The state dict in a .pt2's members."""
    shapes = {
        "conv.weight": (4, 3, 3, 3),
        "conv.bias": (4,),
        "classifier.weight": (1000, 4),
        "classifier.bias": (1000,),
    }
    [config] = [json.loads(data) for name, data in members.items() if name.endswith("model_weights_config.json")]
    found = {}
    for name, about in config["config"].items():
        [data] = [data for member, data in members.items() if member.endswith(f"/weights/{about['path_name']}")]
        found[name] = torch.from_numpy(np.frombuffer(data, "f").reshape(shapes[name]).copy())
    return found


def test_an_honest_program(tmp_path, exported):
    """It runs, and what lies beside it, sample inputs and libraries, is not opened."""
    [samples] = [name for name in exported if "sample_inputs" in name]
    strange = {samples: pickle.dumps(Payload(tmp_path / "mark")), "small/data/aotinductor/model/x.so": b"\x7fELF"}
    assert same_as(write(tmp_path / "x.pt2", exported | strange), weights_of(exported))
    assert not (tmp_path / "mark").exists()


class Unusual(Small):
    def forward(self, x):
        with torch.no_grad():
            x = self.conv(x)
        x = torch.relu(x).clamp(max=float("inf"))
        return self.classifier(x.mean((2, 3)))


def test_gradients_off_and_infinity(tmp_path):
    network = Unusual().eval()
    torch.export.save(torch.export.export(network, (torch.zeros(2, 3, 75, 64),)), tmp_path / "x.pt2")
    assert same_as(tmp_path / "x.pt2", network.state_dict())


def calls(target):
    def change(program):
        nodes(program)[0] |= {
            "target": target,
            "inputs": [{"name": "command", "arg": {"as_string": "touch mark"}, "kind": 1}],
        }

    return change


@pytest.mark.parametrize(
    "target",
    [
        "torch.os.system",
        "torch.hub.load",
        "torch.ops.aten.from_file.default",
        "torch.ops.aten._unsafe_index.Tensor",
        "torch.ops.mine.relu.default",
        "torch.ops.aten.relu.no_such_overload",
        "torch.ops.aten.__class__.__init__",
        "_operator.methodcaller",
        "_operator.__builtins__",
        "math.factorial",
        "torch.ops.higher_order.cond",
        "#extension:x",
        "",
    ],
)
def test_operators_that_are_not_listed(tmp_path, exported, target, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = write(tmp_path / "x.pt2", changed(exported, "models/model.json", calls(target)))
    with pytest.raises(ParityError, match=re.escape(f"operator {target} is not one that a network of images needs")):
        exported_program(path)
    assert not (tmp_path / "mark").exists()


def expression(program):
    """torch.export evaluates the text of a size."""
    values = program["graph_module"]["graph"]["tensor_values"]
    for about in values.values():
        for side in about["sizes"]:
            side.clear()
            side["as_expr"] = {"expr_str": "__import__('os').mkdir('mark')", "hint": None}


def test_expressions_are_not_evaluated(run, demo_folder, tmp_path, exported, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = write(tmp_path / "x.pt2", changed(exported, "models/model.json", expression))
    said = run("verify", demo_folder, path, "--reference", demo_folder / "expected.npz", "--dtype", "float64")
    assert said.code == 2
    assert "nothing to ask" in said.err  # it was opened
    assert not (tmp_path / "mark").exists()


def pickled(kind):
    """The file's first weight, or a constant, as a pickle that runs code."""

    def members(exported, mark):
        data = io.BytesIO()
        torch.save(Payload(mark), data)
        folder = next(n for n in exported if n.endswith("data/weights/weight_0")).removesuffix("weights/weight_0")
        payload = {"path_name": "opaque_obj_0", "is_param": False, "use_pickle": True, "tensor_meta": {}}
        there = changed(exported, f"model_{kind}_config.json", lambda c: c["config"].update({"conv.weight": payload}))
        return there | {f"{folder}{kind}/opaque_obj_0": data.getvalue()}

    return members


def until_2_7(exported, mark):
    """The layout of torch 2.7 and before."""
    data = io.BytesIO()
    torch.save({"conv.weight": Payload(mark)}, data)
    [program] = [data for name, data in exported.items() if name.endswith("models/model.json")]
    return {"version": b"8.8", "serialized_exported_program.json": program, "serialized_state_dict.pt": data.getvalue()}


@pytest.mark.parametrize("made", [pickled("weights"), pickled("constants"), until_2_7])
def test_pickles_are_refused(run, demo_folder, tmp_path, exported, made):
    path = write(tmp_path / "x.pt2", made(exported, tmp_path / "mark"))
    assert "pickled weights that are not plain tensors" in verify(run, demo_folder, path)
    assert not (tmp_path / "mark").exists()


def test_the_layout_until_2_7(tmp_path, exported):
    tensors, saved = weights_of(exported), {}
    for name, content in (("state_dict", tensors), ("constants", {})):
        data = io.BytesIO()
        torch.save(content, data)
        saved[f"serialized_{name}.pt"] = data.getvalue()
    [program] = [data for name, data in exported.items() if name.endswith("models/model.json")]
    assert same_as(write(tmp_path / "x.pt2", saved | {"serialized_exported_program.json": program}), tensors)


def expand(config):
    about = config["config"]["conv.weight"]["tensor_meta"]
    about["sizes"], about["strides"] = [[{"as_int": side}] * 4 for side in (300, 0)]


def outside(config):
    config["config"]["conv.weight"]["tensor_meta"]["storage_offset"]["as_int"] = 1 << 40


@pytest.mark.parametrize(("change", "message"), [(expand, "does not lie in its"), (outside, "does not lie in its")])
def test_weights_that_are_not_there(run, demo_folder, tmp_path, exported, change, message):
    path = write(tmp_path / "x.pt2", changed(exported, "model_weights_config.json", change))
    assert message in verify(run, demo_folder, path)


def test_members_that_unpack_to_much(run, demo_folder, tmp_path, exported):
    [name] = [name for name in exported if name.endswith("weights/weight_0")]
    path = write(tmp_path / "x.pt2", exported | {name: bytes(200 << 20)}, zipfile.ZIP_DEFLATED)
    assert "unpacks to more than" in verify(run, demo_folder, path)


def no_images(program):
    program["graph_module"]["signature"]["input_specs"].pop()


def graph_argument(program):
    nodes(program)[0]["inputs"].append({"name": "x", "arg": {"as_graph": {"name": "g"}}, "kind": 1})


def unknown_value(program):
    nodes(program)[0]["inputs"][0]["arg"] = {"as_tensor": {"name": "nobody"}}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (no_images, "must take only images (N, 3, H, W); takes 0 tensors"),
        (graph_argument, "does not run on images"),
        (unknown_value, "does not run on images"),
        (lambda program: program.clear(), "not a program of torch.export that can be read"),
        (lambda program: program["graph_module"].update(graph=[]), "not a program of torch.export that can be read"),
    ],
)
def test_damaged_programs(tmp_path, exported, change, message):
    path = write(tmp_path / "x.pt2", changed(exported, "models/model.json", change))
    with pytest.raises(ParityError, match=re.escape(message)):
        list(exported_program(path).run(np.zeros((1, 75, 64, 3), "f"), ["Logits"]))


def arrays_of_objects(path):
    np.savez(path, input=np.array([Payload(path.with_name("mark"))], object))


def torchscript(path):
    torch.jit.trace(Small().eval(), torch.zeros(1, 3, 64, 64)).save(str(path))


def test_recorded_arrays_of_objects(run, demo_folder, tmp_path):
    arrays_of_objects(tmp_path / "x.npz")
    verify(run, demo_folder, tmp_path / "x.npz")
    assert run("verify", demo_folder, "--reference", tmp_path / "x.npz").code == 2
    assert not (tmp_path / "mark").exists()


@pytest.mark.parametrize("name", ["x.pt", "x.pth", "x.ts"])
def test_torchscript_is_a_program(run, demo_folder, tmp_path, name):
    torch.jit.trace(Small().eval(), torch.zeros(1, 3, 64, 64)).save(str(tmp_path / name))
    Image.new("RGB", (32, 32)).save(tmp_path / "photo.png")
    commands = [("convert", "-o", tmp_path / "out.pth"), ("predict", tmp_path / "photo.png")]
    commands.append(("release", "--out", tmp_path / "dist"))
    for command, *others in commands:
        ran = run(command, tmp_path / name, *others)
        assert (ran.code, ran.err.count("\n")) == (2, 1), ran.err
        assert f"{name}: a TorchScript program, and loading it could run code" in ran.err
    assert "name a callable that returns torch.jit.load" in verify(run, demo_folder, tmp_path / name)


CODE = """
import ctypes, os, sys
from torch import nn

class Module(nn.Module):
    def forward(self, images):
        os._exit(0)

class Copied(nn.Module):
    def __deepcopy__(self, memo):
        sys.exit(0)

class Stated(nn.Module):
    def state_dict(self, *args, **kwargs):
        sys.exit(0)

def leaves():
    os._exit(0)

def crashes():
    ctypes.string_at(0)

def stops():
    raise GeneratorExit

def prints():
    print("PARITY")
    sys.exit(0)
"""


@pytest.mark.parametrize(
    ("named", "message"),
    [
        ("Module", "ended the process, with exit code 0, so that there is no verdict"),
        pytest.param(
            "leaves", "ended the process, with exit code 0, so that there is no verdict", marks=pytest.mark.slow
        ),
        pytest.param("crashes", "ended the process, by signal 11, so that there is no verdict", marks=pytest.mark.slow),
    ],
)
def test_code_that_ends_the_process_does_not_give_the_exit_code(demo_folder, tmp_path, named, message):
    command = [sys.executable, "-m", "porter", *by_code(demo_folder, tmp_path, named)]
    ran = subprocess.run([*map(str, command)], capture_output=True, text=True)
    no_verdict(tmp_path, Ran(ran.returncode, ran.stdout, ran.stderr), message)


@pytest.mark.parametrize(
    ("named", "message"),
    [
        ("Copied", "cannot be copied in float64 (SystemExit: 0)"),
        ("Stated", "is no ordinary module (SystemExit: 0)"),
        ("stops", "gives no module (GeneratorExit:)"),
        ("prints", "gives no module (SystemExit: 0)"),
    ],
)
def test_code_does_not_give_the_exit_code(run, demo_folder, tmp_path, named, message):
    no_verdict(tmp_path, run(*by_code(demo_folder, tmp_path, named)), message)


def by_code(demo_folder, folder, named):
    """A check of the port that ``named`` in CODE gives."""
    (folder / "code.py").write_text(CODE)
    options = ["--reference", demo_folder / "expected.npz", "--junit", folder / "junit.xml"]
    return ["verify", demo_folder, f"{folder / 'code.py'}:{named}", *options]


def no_verdict(folder, ran, message):
    """One line of error, nothing printed in place of the verdict, and JUnit's file has the error."""
    assert (ran.code, ran.out) == (2, ""), ran.err
    assert ran.err.removeprefix("PARITY\n").count("\n") == 1
    assert message in ran.err
    assert "<error" in (folder / "junit.xml").read_text()


@pytest.mark.parametrize(
    ("number", "code", "send"),
    [
        (signal.SIGINT, 130, os.killpg),
        pytest.param(signal.SIGINT, 130, os.kill, marks=pytest.mark.slow),
        pytest.param(signal.SIGTERM, 143, os.killpg, marks=pytest.mark.slow),
        pytest.param(signal.SIGTERM, 143, os.kill, marks=pytest.mark.slow),
    ],
)
def test_a_signal_ends_code(demo_folder, tmp_path, number, code, send):
    """Also where a terminal sends it to both processes."""
    mark = tmp_path / "mark"
    (tmp_path / "code.py").write_text(f"def endless():\n    open({str(mark)!r}, 'w')\n    while True: pass\n")
    command = [sys.executable, "-m", "porter", "verify", str(demo_folder), f"{tmp_path / 'code.py'}:endless"]
    command += ["--reference", str(demo_folder / "expected.npz")]
    running = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    _wait_for(mark.exists)
    send(running.pid, number)
    _, said = running.communicate(timeout=20)
    assert (running.returncode, said) == (code, "Interrupted\n" if number == signal.SIGINT else "")
