"""Release folders whose files were made by somebody else: a problem each, by name, never a bug's exit code."""

import io
import json
import shutil
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from porter.releases.folder import write_checksums

WRONG = (None, 5, "x", [], {}, [1], {"x": 1}, float("nan"), True)


@pytest.fixture(scope="module")
def released(tmp_path_factory, three_blocks):
    from porter.releases.publish import release

    folder = tmp_path_factory.mktemp("release") / "dist"
    release(three_blocks.source, folder, reference=str(three_blocks.recorded), mapping=three_blocks.mapping)
    return folder


@pytest.fixture
def copy(released, tmp_path):
    """A release of three blocks: what is wrong beside the weights is found in a small one as well."""
    return shutil.copytree(released, tmp_path / "dist")


@pytest.fixture(scope="module")
def released_variant(tmp_path_factory, demo_folder):
    from porter.releases.publish import release

    folder = tmp_path_factory.mktemp("release") / "dist"
    release(demo_folder, folder, reference=str(demo_folder / "expected.npz"))
    return folder


@pytest.fixture
def copy_of_variant(released_variant, tmp_path):
    """A release of a variant, whose name leads to its mapping."""
    return shutil.copytree(released_variant, tmp_path / "dist")


def checked(run, folder):
    """The exit code of a check of ``folder``, whose checksums are made to agree; what it said."""
    (folder / "SHA256SUMS").unlink()
    write_checksums(folder)
    ran = run("release", "--check", folder)
    assert ran.code in (0, 1, 2), ran.err
    assert "Traceback" not in ran.err
    return ran


@pytest.mark.parametrize("name", ["config.json", pytest.param("parity.json", marks=pytest.mark.slow)])
def test_values_of_other_types(run, copy, name):
    path = copy / name
    honest = json.loads(path.read_text())
    refused = 0
    for key in honest:
        read = key in ("architecture", "num_classes", "passed", "digests", "fake_quant")
        for value in WRONG[:5] if read else WRONG[:1]:
            path.write_text(json.dumps(honest | {key: value}))
            refused += checked(run, copy).code == 2
    for text in ("", "[]", "5", "null", '"x"', "{", "{}", "[" * 100_000, '{"a": 1' + "0" * 5000 + "}", "\ud800", "NaN"):
        path.write_bytes(text.encode(errors="surrogatepass"))
        assert checked(run, copy).code == 2, text[:20]
    assert refused >= 8


def repacked(path, change):
    """The arrays of the ``.npz`` ``path``, changed."""
    with np.load(path) as file:
        arrays = change({name: file[name] for name in file.files})
    np.savez_compressed(path, **arrays)


@pytest.mark.parametrize(
    "change",
    [
        lambda a: a | {"input": a["input"][0]},
        lambda a: a | {"input": a["input"][..., :1]},
        lambda a: a | {"input": a["input"] * np.nan},
        lambda a: a | {"input": a["input"].astype("c8")},
        lambda a: a | {"input": a["input"][:0]},
        lambda a: a | {"input": a["input"][:, :0]},
        lambda a: a | {"input": np.array("x")},
        lambda a: a | {"keep": np.array([1, 2])},
        lambda a: a | {"keep": np.array(0)},
        lambda a: a | {"keep": np.array(-5)},
        lambda a: a | {"keep": np.array("x")},
        lambda a: a | {"precision": np.array("x")},
        lambda a: a | {"precision": np.array(5)},
        lambda a: a | {"ep/Logits": a["ep/Logits"][:, :5]},
        lambda a: a | {"ep/Logits": a["ep/Logits"] * np.nan},
        lambda a: a | {"ep/Logits": np.array(1.0)},
        lambda a: a | {"ep/Logits": a["ep/Logits"].astype(str)},
        lambda a: a | {"ep/layer_2": a["ep/layer_2"][..., None]},
        lambda a: a | {"noise/Logits": np.array([1.0])},
        lambda a: a | {"noise/Logits": np.array([np.inf, np.inf])},
        lambda a: {"input": a["input"]},
        lambda a: {"input": a["input"], "ep/elsewhere": a["ep/Logits"]},
    ],
)
def test_references_of_other_shapes(run, copy, change):
    repacked(copy / "reference.npz", change)
    assert checked(run, copy).code in (1, 2)


def test_reference_that_unpacks_to_gigabytes(run, copy):
    """A header of 10^12 values, and 256 MiB of zeros in a megabyte."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": (1 << 40, 1, 1, 1)})
    for content in (header.getvalue(), header.getvalue() + bytes(1 << 28)):
        with zipfile.ZipFile(copy / "reference.npz", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
            archive.writestr("input.npy", content)
            archive.writestr("ep/Logits.npy", content[:200])
        ran = checked(run, copy)
        assert ran.code == 2
        assert "reference.npz" in ran.err


@pytest.mark.parametrize(
    "change",
    [
        lambda t, m: (t, {}),
        lambda t, m: (t, {"mnv3_port": "{}"}),
        lambda t, m: (t, {"mnv3_port": "[" * 10_000}),
        lambda t, m: (t, {"mnv3_port": m["mnv3_port"].replace('"small_075"', '"../../x"')}),
        lambda t, m: (t, {"mnv3_port": m["mnv3_port"].replace('"small_075"', '"large_100"')}),
        lambda t, m: (t, {"mnv3_port": m["mnv3_port"].replace('"timm"', '"TIMM"')}),
        lambda t, m: (t, {"mnv3_port": m["mnv3_port"].replace('"num_classes":', '"num_classes":-')}),
        lambda t, m: (t, {"mnv3_port": m["mnv3_port"].replace('"gate":', '"gate":1e308,"x":')}),
        lambda t, m: (dict(list(t.items())[:-1]), m),
        lambda t, m: ({n: v.double() for n, v in t.items()}, m),
        lambda t, m: ({n: v[..., None].contiguous() for n, v in t.items()}, m),
        lambda t, m: (t | {"more": torch.ones(1)}, m),
    ],
)
@pytest.mark.parametrize("twins", [False, True])
def test_weights_of_others(run, copy_of_variant, change, twins):
    """One of the twins changed, or both alike."""
    copy = copy_of_variant
    from safetensors import safe_open

    with safe_open(copy / "model.safetensors", framework="pt") as file:
        metadata = file.metadata()
    tensors, metadata = change(load_file(copy / "model.safetensors"), metadata)
    save_file(tensors, copy / "model.safetensors", metadata)
    if twins:
        from collections import OrderedDict

        from porter.sources.checkpoint import sha256

        [path] = copy.glob("*.pth")
        state = OrderedDict(tensors)
        state._metadata = {key: {"json": value} for key, value in metadata.items()}
        torch.save(state, path)
        path = path.rename(copy / f"{path.stem.rpartition('-')[0]}-{sha256(path)[:8]}.pth")
        parity = json.loads((copy / "parity.json").read_text())
        parity["digests"] = {path.name: sha256(path)}
        (copy / "parity.json").write_text(json.dumps(parity))
    assert checked(run, copy).code == 2


@pytest.mark.parametrize(
    "content", [b"\xff\xfe", b"", b"x  y\n", b"0" * 64 + b"  ../x\n", b"0" * 64 + b"  a\0b\n", b"z" * 64 + b"  a\n"]
)
def test_checksums(run, copy, content):
    (copy / "SHA256SUMS").write_bytes(content)
    assert run("release", "--check", copy).code == 2
