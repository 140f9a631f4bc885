"""Mutated files for every reader: expected errors only, in bounded time and memory."""

from __future__ import annotations

import json
import random
import shutil
import struct
import tarfile
import time
import zipfile
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from itertools import cycle
from pathlib import Path
from typing import NamedTuple

import h5py
import hostile_files
import msgspec
import numpy as np
from PIL import Image
from three_blocks import MAPPING

from porter.artifacts.artifact import Artifact, ArtifactFile, load_artifact, save_artifact
from porter.artifacts.inspection import Parity
from porter.errors import PorterError
from porter.evaluation.boxes import read_coco
from porter.evaluation.dataset import find_labelled
from porter.evaluation.masks import _read_labels
from porter.mapping.files import load_mapping, mappings_folder, standalone
from porter.mapping.options import PortOptions
from porter.network.segmentation import Segmentation
from porter.parity.candidates.programs import exported_program
from porter.parity.demo import demo_variables, random_variables
from porter.parity.references.recorded import recorded
from porter.photos.labels import read_class_names
from porter.port import carry_out_port, plan_port
from porter.releases.card import config
from porter.releases.check import _contradictions
from porter.releases.folder import add_hash
from porter.sources import open_checkpoint
from porter.sources.bundle_graph import read_graph
from porter.sources.bundle_index import read_index
from porter.sources.bundle_writer import write_bundle
from porter.sources.checkpoint import sha256
from porter.sources.sstable import read_table
from porter.sources.sstable_writer import table_bytes
from porter.sources.stored_graph import StoredGraph
from porter.sources.tfjs_graph import read_topology
from porter.sources.variable import Variable

SECONDS = 20.0  # per input, on any machine; libhdf5 is stopped after 15. These limits: SECURITY.md
HDF5_SHARE = 60
HEAD = Segmentation(filters=128, window=[49, 49], stride=[16, 20], epsilon=1e-5, low="layer_4/expansion_output")
BETWEEN = b"\0\n"  # files that are mutated together
SLACK = 64 << 20  # bytes of resident memory beyond 4 x the file's size


class Target(NamedTuple):
    """One reader: ``seed`` a valid file, ``name`` what to call the mutant, ``read`` what to do with it.

    ``more`` are further valid or hostile files to start from. ``repair`` rebuilds checksums after mutating the entries
    of a table, so that mutants get past them.
    """

    name: str
    seed: Path
    read: Callable[[Path], object]
    repair: bool = False
    share: int = 1  # one in so many inputs, for a reader that starts a process each time
    more: tuple[bytes, ...] = ()


def read_checkpoint(path: Path) -> None:
    opened = open_checkpoint(path)
    for variable in opened.values():
        variable.read()
    if opened.graph:
        follow(opened.graph)


def follow(graph: StoredGraph) -> None:
    """Ask ``graph`` what mappings and heads ask it."""
    for operation in graph.in_order:
        graph.path(operation)
        graph.behind(operation)
    weights = cycle(graph.by_weight or ("none",))
    HEAD.as_in_graph(graph, {f"classifier.{layer}.weight": next(weights) for layer in ("scale.1", "cbr.0")})


def read_tfjs_nodes(path: Path) -> None:
    variables = {
        name: Variable(name, (1, 1, 2, 2), "float32", name, "", lambda: np.ones((1, 1, 2, 2))) for name in "ak"
    }
    follow(read_topology(path.read_bytes(), ("m",), variables, str(path)))


def read_release(path: Path, folder: Path) -> None:
    """The files that a release has as text lie behind each other in ``path``; its weights are honest."""
    parts = path.read_bytes().split(BETWEEN)
    for name, data in zip(("config.json", "parity.json", "mapping.yaml"), parts, strict=False):
        (folder / name).write_bytes(data)
    [weights], own = folder.glob("*.pth"), folder / "mapping.yaml"
    file = ArtifactFile(weights, str(weights), own if own.is_file() else None)
    vars(file)["artifact"] = honest(weights)
    _contradictions(folder, file)


@cache
def honest(weights: Path) -> Artifact:
    """Read once: torch's reader takes four times as long as all that is fuzzed."""
    return load_artifact(weights)


def read_program(path: Path) -> None:
    """The program of a .pt2 and the list of its weights lie behind each other in ``path``."""
    program, _, weights = path.read_bytes().partition(BETWEEN)
    with zipfile.ZipFile(path.with_suffix(".pt2"), "w") as archive:
        archive.writestr("x/models/model.json", program)
        archive.writestr("x/data/weights/model_weights_config.json", weights)
        archive.writestr("x/data/constants/model_constants_config.json", b'{"config": {}}')
        archive.writestr("x/data/weights/weight_0", bytes(48))
    exported_program(path.with_suffix(".pt2"))


def read_recorded(path: Path) -> None:
    reference = recorded(path)
    [sample] = reference.samples
    for _ in reference.run(sample.images, ["Logits"]):
        pass


TFJS_NODES = [
    {"name": "x", "op": "Placeholder", "attr": {"shape": {"shape": {"dim": [{"size": "-1"}, {"size": "8"}]}}}},
    *({"name": name, "op": "Const"} for name in "ak"),
    {
        "name": "c",
        "op": "_FusedConv2D",
        "input": ["x", "k", "a"],
        "attr": {
            "strides": {"list": {"i": ["1", "2", "2", "1"]}},
            "padding": {"s": "U0FNRQ=="},
            "fused_ops": {"list": {"s": ["Qmlhc0FkZA==", "UmVsdTY="]}},
            "epsilon": {"f": 0.001},
            "T": {"type": "DT_FLOAT"},
        },
    },
    {"name": "AvgPool2D/AvgPool", "op": "AvgPool", "input": ["c"], "attr": {"ksize": {"list": {"i": [1, 49, 49, 1]}}}},
    {"name": "d", "op": "AddV2", "input": ["c", "AvgPool2D/AvgPool"]},
    {"name": "m", "op": "_FusedMatMul", "input": ["d", "a"], "attr": {"fused_ops": {"list": {"s": ["UmVsdQ=="]}}}},
]


def small_variables() -> dict[str, np.ndarray]:
    return {f"scope/v{i}": np.arange(i + 4, dtype="f").reshape(1, -1) for i in range(5)}


def targets(folder: Path) -> Iterator[Target]:
    """Seeds of every format; those that only TensorFlow writes are left out where it is missing."""
    (folder / "v2").mkdir()
    write_bundle(folder / "v2" / "model-1", small_variables())
    index = folder / "v2" / "model-1.index"
    yield Target("V2 index", index, read_checkpoint)
    aliases = read_index(index).entries
    aliases |= {b"alias/%d" % number: aliases[b"scope/v4"] for number in range(20)}
    yield Target("V2 entries", index, read_checkpoint, repair=True, more=(hostile_files.index_bytes(aliases),))
    with tarfile.open(folder / "v2.tgz", "w:gz") as archive:
        archive.add(folder / "v2", "v2")
    yield Target("tgz", folder / "v2.tgz", read_checkpoint)
    yield from _artifact_targets(folder)
    with zipfile.ZipFile(folder / "v2.zip", "w") as archive:
        for path in (folder / "v2").iterdir():
            archive.write(path, f"v2/{path.name}")
    yield Target("zip", folder / "v2.zip", read_checkpoint)
    yield from _hdf5_targets(folder)
    arrays = {"input": np.ones((1, 2, 2, 3), "f"), "ep/Logits": np.ones((1, 5)), "noise/Logits": np.array([1e-8, 1e-7])}
    np.savez_compressed(folder / "r.npz", **arrays)
    yield Target(".npz", folder / "r.npz", read_recorded)
    yield Target("tfjs", _tfjs(folder / "js"), read_checkpoint)
    (folder / "nodes").write_text(json.dumps(TFJS_NODES))
    yield Target("tfjs topology", folder / "nodes", read_tfjs_nodes)
    yield from _candidate_targets(folder)
    yield from _photo_targets(folder)
    release = folder / "release"
    yield Target("release", _release(release), lambda path: read_release(path, release), share=10)
    shutil.copy(mappings_folder() / "small_100.yaml", folder / "m.yaml")
    yield Target("mapping", folder / "m.yaml", load_mapping, share=10)
    try:
        import tensorflow as tf
    except ImportError:
        return
    yield from _tensorflow_targets(tf, folder)


def _tfjs(folder: Path) -> Path:
    folder.mkdir()
    weights = [
        {"name": "a", "shape": [2, 3], "dtype": "float32"},
        {
            "name": "b",
            "shape": [4],
            "dtype": "float32",
            "quantization": {"dtype": "uint8", "min": -1.5, "scale": 0.25, "original_dtype": "float32"},
        },
        {"name": "x/squeeze_excite/Conv_1/mul/y", "shape": [], "dtype": "float32"},
    ]
    (folder / "model.data-1").write_bytes(np.arange(6, dtype="<f4").tobytes() + bytes(range(4)) + b"\0\0\x80\x3f")
    groups = [{"paths": ["model.data-1"], "weights": weights}]
    nodes = [
        {"name": "x", "op": "Placeholder", "attr": {"shape": {"shape": {"dim": [{"size": "-1"}]}}}},
        {"name": "a", "op": "Const"},
        {"name": "m", "op": "_FusedMatMul", "input": ["x", "a"], "attr": {"fused_ops": {"list": {"s": ["UmVsdQ=="]}}}},
    ]
    model = {"format": "graph-model", "modelTopology": {"node": nodes}, "weightsManifest": groups}
    (folder / "model.json").write_text(json.dumps(model))
    return folder / "model.json"


def _candidate_targets(folder: Path) -> Iterator[Target]:
    def tensor(name: str) -> dict[str, object]:
        return {"as_tensor": {"name": name}}

    def sizes(*sides: int) -> list[dict[str, int]]:
        return [{"as_int": side} for side in sides]

    arguments = {
        "input": tensor("x"),
        "weight": tensor("w"),
        "bias": {"as_none": True},
        "stride": {"as_ints": [2, 2]},
        "padding": {"as_ints": [0, 0]},
        "groups": {"as_int": 1},
    }
    nodes = [
        {
            "target": "torch.ops.aten.conv2d.default",
            "inputs": [{"name": name, "arg": arg} for name, arg in arguments.items()],
            "outputs": [tensor("y")],
        },
        {
            "target": "torch.ops.aten.relu.default",
            "inputs": [{"name": "self", "arg": tensor("y")}],
            "outputs": [tensor("z")],
        },
    ]
    known = {"x": {"sizes": [{"as_expr": {"expr_str": "s0"}}, *sizes(3, 8, 8)]}}
    inputs = [
        {"parameter": {"arg": {"name": "w"}, "parameter_name": "conv.weight"}},
        {"user_input": {"arg": tensor("x")}},
    ]
    program = {
        "graph": {"nodes": nodes, "inputs": [tensor("x")], "outputs": [tensor("z")], "tensor_values": known},
        "signature": {"input_specs": inputs, "output_specs": [{"user_output": {"arg": tensor("z")}}]},
    }
    about = {"dtype": 7, "sizes": sizes(4, 3, 1, 1), "strides": sizes(3, 1, 1, 1), "storage_offset": {"as_int": 0}}
    weights = {"conv.weight": {"path_name": "weight_0", "use_pickle": False, "tensor_meta": about}}
    texts = (json.dumps(one).encode() for one in ({"graph_module": program}, {"config": weights}))
    (folder / "program").write_bytes(BETWEEN.join(texts))
    yield Target(".pt2", folder / "program", read_program)


def _photo_targets(folder: Path) -> Iterator[Target]:
    """Masks, boxes and classes of photos, and the names of classes."""
    photos = folder / "photos"
    photos.mkdir()
    for name in "ab":
        Image.new("RGB", (8, 8)).save(photos / f"{name}.png")
    Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)).save(folder / "mask.png")
    yield Target("mask", folder / "mask.png", lambda path: _read_labels(path, (8, 8)))
    coco = {
        "images": [{"id": 1, "file_name": "a.png", "height": 8, "width": 8}],
        "annotations": [{"image_id": 1, "category_id": 2, "bbox": [0, 0.5, 4, 4], "area": 16, "iscrowd": 0}],
        "categories": [{"id": 2, "name": "a person"}],
    }
    (folder / "coco.json").write_text(json.dumps(coco))
    yield Target("COCO", folder / "coco.json", read_coco)
    (folder / "names").write_text("tench\ngreat white shark, \u00e9\n=1+1\n")
    yield Target("class names", folder / "names", read_class_names)
    (folder / "labels.csv").write_text('file,label\na.png,n01440764 1 2\n"b",great white\n')
    yield Target("CSV", folder / "labels.csv", lambda path: find_labelled(photos, path, ("tench", "great white")))


def _release(folder: Path) -> Path:
    """What a release of a small network has in text, in one file beside its weights in ``folder``."""
    folder.mkdir()
    own = folder / "mapping.yaml"
    own.write_text(MAPPING)
    own.write_bytes(standalone(load_mapping(own)))
    write_bundle(folder.with_name("model-3"), random_variables(load_mapping(own)))
    port = plan_port(folder.with_name("model-3"), PortOptions(mapping=own))
    artifact = carry_out_port(port)
    save_artifact(folder / "model.safetensors", artifact)
    save_artifact(folder / "small.pth", artifact)
    weights = add_hash(folder / "small.pth")
    stated = Parity(True, "same function", "tf.nn graph", {weights.name: sha256(weights)})
    assert artifact.metadata is not None
    seed = folder.with_name("texts")
    seed.write_bytes(BETWEEN.join((config(port, artifact.metadata), msgspec.json.encode(stated), own.read_bytes())))
    return seed


def _artifact_targets(folder: Path) -> Iterator[Target]:
    prefix = folder / "whole" / "model-1"
    prefix.parent.mkdir()
    write_bundle(prefix, demo_variables("small_075", classes=2))
    whole = carry_out_port(plan_port(prefix))
    few = whole._replace(arrays=dict(list(whole.arrays.items())[:8]))
    for suffix in ("pth", "safetensors"):
        path = folder / f"seed.{suffix}"
        save_artifact(path, few)
        yield Target(f".{suffix}", path, load_artifact)


def _hdf5_targets(folder: Path) -> Iterator[Target]:
    """The three layouts of Keras, as small as they can be."""
    weights = folder / "m.weights.h5"
    with h5py.File(weights, "w") as file:
        file["layers/conv2d/vars/0"] = np.arange(6, dtype="f").reshape(1, 1, 2, 3)
        file["layers/conv2d/vars"].attrs["name"] = "conv"
        file["layers/batch_normalization/vars/0"] = np.ones(3, "f")
    yield Target(".weights.h5", weights, read_checkpoint, share=HDF5_SHARE)
    legacy = folder / "m.h5"
    with h5py.File(legacy, "w") as file:
        file.attrs["layer_names"] = ["conv"]
        group = file.create_group("conv")
        group.attrs["weight_names"] = ["conv/kernel:0"]
        group["conv/kernel:0"] = np.ones((2, 3), "f")
    yield Target("legacy .h5", legacy, read_checkpoint, share=HDF5_SHARE)
    with zipfile.ZipFile(folder / "m.keras", "w") as archive:
        archive.write(weights, "model.weights.h5")
        layers = [{"class_name": "Conv2D", "name": "conv", "config": {"name": "conv"}}]
        archive.writestr("config.json", json.dumps({"config": {"layers": layers}}))
    yield Target(".keras", folder / "m.keras", read_checkpoint, share=HDF5_SHARE)


def _tensorflow_targets(tf, folder: Path) -> Iterator[Target]:
    v1 = tf.compat.v1
    with tf.Graph().as_default(), v1.Session() as session:
        v1.get_variable("scope/a", (3, 4))
        v1.get_variable("scope/b", (7, 5), partitioner=v1.fixed_size_partitioner(3))
        session.run(v1.global_variables_initializer())
        for version, name in ((1, "v1.ckpt"), (2, "sliced")):
            v1.train.Saver(write_version=version).save(session, str(folder / name), write_meta_graph=False)
    yield Target("V1 file", folder / "v1.ckpt", read_checkpoint)
    yield Target("V1 entries", folder / "v1.ckpt", read_checkpoint, repair=True)
    yield Target("V2 slices", folder / "sliced.index", read_checkpoint, repair=True)
    module = tf.Module()
    module.v = [tf.Variable(tf.ones((2, 3)), name=f"scope/v{i}") for i in range(3)]
    tf.train.Checkpoint(m=module).write(str(folder / "object"))
    yield Target("object-based", folder / "object.index", read_checkpoint, repair=True)
    with tf.Graph().as_default() as graph:
        x = v1.placeholder("float32", (1, 4, 4, 2), "x")
        convolved = tf.nn.conv2d(
            x, tf.constant(np.arange(6, dtype="f").reshape(1, 1, 2, 3), name="c/weights"), 1, "SAME"
        )
        tf.nn.bias_add(convolved, tf.constant([1.0, 2.0, 3.0], name="c/biases"))
        (folder / "frozen.pb").write_bytes(graph.as_graph_def().SerializeToString())
        v1.train.export_meta_graph(str(folder / "run.meta"), graph=graph, graph_def=graph.as_graph_def())
    yield Target("head graph", _head(v1, tf, folder), read_checkpoint)
    hostile = (
        hostile_files.graph((1, 1, 9, 9), float_val=[1.0]),
        hostile_files.graph((1 << 62, 0), float_val=[1.0]),
    )
    yield Target("frozen graph", folder / "frozen.pb", read_checkpoint, more=hostile)
    yield Target(".meta", folder / "run.meta", lambda path: read_graph(path, {}))
    module.call = tf.function(lambda x: x @ tf.transpose(module.v[0]), input_signature=[tf.TensorSpec((None, 3))])
    tf.saved_model.save(module, str(folder / "saved"), module.call)
    calls = (hostile_files.calls(20), hostile_files.calls(1))
    yield Target("SavedModel", folder / "saved" / "saved_model.pb", lambda path: read_graph(path, {}), more=calls)
    yield Target(
        ".tflite",
        _tflite(tf, folder),
        read_checkpoint,
        more=(hostile_files.tflite(), hostile_files.tflite(4, 8, shared=16)),
    )


def _head(v1, tf, folder: Path) -> Path:
    """What a segmenter's graph says of its head: a window, an epsilon, and resizing."""
    with tf.Graph().as_default() as graph:
        x = v1.placeholder("float32", (1, 9, 9, 2), "ImageTensor")
        kernel = tf.constant(np.arange(4, dtype="f").reshape(1, 1, 2, 2), name="aspp0/weights")
        with tf.name_scope("aspp0"):
            branch = tf.nn.relu6(tf.nn.conv2d(x, kernel, 1, "SAME"))
            two = tf.constant([1.0, 2.0])
            branch = v1.nn.fused_batch_norm(branch, two, two, two, two, 1e-5, is_training=False, name="BatchNorm")[0]
        with tf.name_scope("AvgPool2D"):
            pooled = tf.nn.avg_pool2d(x, (4, 4), (2, 2), "VALID", name="AvgPool")
        gate = tf.sigmoid(v1.image.resize_bilinear(pooled, (9, 9), align_corners=True))
        v1.image.resize_bilinear(branch * gate, (17, 17), align_corners=True, name="ResizeBilinear_2")
        (folder / "head.pb").write_bytes(graph.as_graph_def().SerializeToString())
    return folder / "head.pb"


def _tflite(tf, folder: Path) -> Path:
    kernel = tf.constant(np.arange(6, dtype="f").reshape(1, 1, 2, 3))

    @tf.function(input_signature=[tf.TensorSpec((1, 4, 4, 2))])
    def network(x):
        return tf.nn.relu6(tf.nn.conv2d(x, kernel, 1, "SAME") + [1.0, 2.0, 3.0]) * 0.16667

    converter = tf.lite.TFLiteConverter.from_concrete_functions([network.get_concrete_function()])
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    images = np.random.default_rng(0).uniform(-1, 1, (8, 1, 4, 4, 2)).astype("f")
    converter.representative_dataset = lambda: ([image] for image in images)
    path = folder / "m.tflite"
    path.write_bytes(converter.convert())
    return path


def mutate(data: bytes, source: random.Random) -> bytes:
    """A few flips, overwrites, deletions, insertions or repeats."""
    mutant = bytearray(data) or bytearray(b"\0")
    for _ in range(source.choice((1, 1, 1, 2, 4, 8))):
        at = source.randrange(len(mutant) or 1)
        size = source.randrange(1, 9)
        kind = source.randrange(6)
        if kind == 0 and mutant:
            mutant[at] ^= 1 << source.randrange(8)
        elif kind == 1:
            mutant[at : at + 1] = bytes([source.choice((0, 1, 0x7F, 0x80, 0xFF))])
        elif kind == 2:
            del mutant[at : at + size]
        elif kind == 3:
            mutant[at:at] = source.randbytes(size)
        elif kind == 4:
            mutant[at:at] = b"\xff" * size  # long varints, huge lengths
        else:
            mutant[at:at] = mutant[at : at + size]
    return bytes(mutant)


def packed(entries: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Entries of a table as one string of bytes that a mutator may change anywhere."""
    return b"".join(struct.pack("<HH", len(key), len(value)) + key + value for key, value in entries)


def unpacked(data: bytes) -> list[tuple[bytes, bytes]]:
    """The entries that ``data`` makes, whatever it is: what is cut off is short."""
    entries, at = [], 0
    while at + 4 <= len(data):
        key, value = struct.unpack_from("<HH", data, at)
        at += 4 + key + value
        entries.append((data[at - key - value : at - value], data[at - value : at]))
    return entries


def seeds_of(target: Target) -> list[bytes]:
    """What mutants are made of: files, or packed entries where the target repairs checksums."""
    files = [target.seed.read_bytes(), *target.more]
    return [packed(read_table(data, "")) for data in files] if target.repair else files


def file_of(target: Target, mutant: bytes) -> bytes:
    return table_bytes(unpacked(mutant)) if target.repair else mutant


class Place:
    """A folder where mutants of ``target`` are written and read under the meters; its seed must be read."""

    def __init__(self, target: Target, folder: Path) -> None:
        self.target, self.path = target, folder / target.seed.name
        companions = list(target.seed.parent.glob(f"{target.seed.stem}.data-*"))
        for companion in companions:
            (folder / companion.name).write_bytes(companion.read_bytes())
        self.beside = sum(path.stat().st_size for path in companions)
        assert self.attempt(seeds_of(target)[0], f"{target.name}, its seed") == "read", target.name

    def attempt(self, mutant: bytes, what: str) -> str:
        """``refused`` or ``read``. Raises AssertionError for any other error, or too much time or resident memory."""
        data = file_of(self.target, mutant)
        self.path.write_bytes(data)
        start, before = time.perf_counter(), resident_reset()
        try:
            self.target.read(self.path)
            outcome = "read"
        except PorterError:
            outcome = "refused"
        except Exception as error:
            raise AssertionError(f"{what}: {type(error).__name__}: {error}") from error
        grown = resident_peak() - before
        assert time.perf_counter() - start < SECONDS, f"{what}: slow"
        allowed = 4 * (len(data) + self.beside) + SLACK
        assert grown <= allowed, f"{what}: {grown} bytes taken for a file of {len(data)}"
        return outcome


def resident_reset() -> int:
    """Start the meter: the resident memory of this process in bytes. 0 where the system has no such meter."""
    try:
        Path("/proc/self/clear_refs").write_text("5")  # the peak becomes what it is now
    except OSError:
        return 0
    return resident_peak()


def resident_peak() -> int:
    """The most resident memory in bytes since the meter was started, native code's included."""
    try:
        status = Path("/proc/self/status").read_bytes()
    except OSError:
        return 0
    at = status.index(b"VmHWM:")
    return int(status[at + 6 : status.index(b"kB", at)]) << 10


def fuzz(target: Target, folder: Path, inputs: int, seed: int) -> dict[str, int]:
    """Read ``inputs`` mutants; counts of those refused and those read. Raises AssertionError, naming the seed."""
    place, seeds = Place(target, folder), seeds_of(target)
    counts = {"refused": 0, "read": 0}
    for number in range(max(1, inputs // target.share)):
        source = random.Random(f"{seed} {target.name} {number}")
        mutant = mutate(source.choice(seeds), source)
        counts[place.attempt(mutant, f"{target.name}, seed {seed}, input {number}")] += 1
    return counts
