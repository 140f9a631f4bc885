"""The MobileNetV3 inside larger models: segmenters, detectors, Keras models with heads of their own."""

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import SHARED, endpoints

import porter
from porter.mapping.files import list_backbones, load_variant
from porter.parity.demo import demo_variables
from porter.sources.bundle_writer import write_bundle

HEADS = {"deeplab_v3_large": "large_seg", "deeplab_v3_small": "small_seg", "ssd_v3_small": "small_detection"}


@pytest.fixture(scope="module", params=HEADS)
def oracle(request, unpacked):
    """(folder, variant, folder of recorded outputs)."""
    folder, source = unpacked(request.param)
    return folder, HEADS[request.param], source


@pytest.fixture(scope="module")
def larger(tmp_path_factory) -> Path:
    """The demo's network in a larger model, below a scope of its own."""
    values = demo_variables("small_075")
    renamed = {f"Extractor/{name}": v for name, v in values.items() if name[0] == "M" and "/Logits/" not in name}
    renamed |= {"Head/kernel": np.zeros((3, 3, 1024, 7), np.float32), "Head/bias": np.zeros(7, np.float32)}
    prefix = tmp_path_factory.mktemp("larger") / "model"
    write_bundle(prefix, renamed)
    return prefix


@pytest.mark.tensorflow
@pytest.mark.parametrize("graph", ["model.ckpt-0", pytest.param("frozen.pb", marks=pytest.mark.slow)])
def test_original_graphs(oracle, graph, run, tmp_path):
    """Every endpoint, by the checkpoint's own graph and by the frozen one."""
    folder, variant, _ = oracle
    ran = run("convert", folder / graph, "--backbone", "-o", tmp_path / "a.pth")
    assert ran.code == 0, ran.err
    ran = run("verify", folder / graph, tmp_path / "a.pth", "--backbone", "--size", "96x65")
    assert ran.code == 0, ran.out + ran.err
    assert variant in ran.out
    assert "same function" in ran.out
    assert "not in it" not in ran.out
    assert ("meta graph" if graph == "model.ckpt-0" else "frozen graph") in ran.out


@pytest.mark.parametrize("output_stride", [16, 8])
def test_output_stride(oracle, output_stride):
    """Strides become dilations, as the original code made them."""
    folder, variant, source = oracle
    if "seg" not in variant:
        pytest.skip("a detector's stride is 32")
    recorded = np.load(source / "expected_output_stride_16_8.npz")[f"os{output_stride}/features"]
    images = np.load(source / "expected.npz")["input"][:1]
    model = porter.create_model(variant, folder / "model.ckpt-0", features_only=True, output_stride=output_stride)
    with torch.no_grad():
        found = model(torch.from_numpy(images).permute(0, 3, 1, 2))[-1].permute(0, 2, 3, 1).numpy()
    thinned = [-(-side // kept) for side, kept in zip(found.shape[1:3], recorded.shape[1:3], strict=True)]
    found = found[:, :: max(thinned), :: max(thinned)]
    assert found.shape == recorded.shape
    assert np.abs(found - recorded).max() < 1e-5 * np.abs(recorded).max()


@pytest.mark.tensorflow
@pytest.mark.parametrize("output_stride", [8, 16])
def test_output_stride_of_a_mapping(larger, tmp_path, run, tf, output_stride):
    mapping = tmp_path / "dilated.yaml"
    mapping.write_text(
        "base: small_075.yaml\nvariant: dilated\ntop: none\nscope: Extractor/MobilenetV3\n"
        f"network: {{output_stride: {output_stride}}}\n"
    )
    ran = run("verify", larger, "--mapping", mapping, "--reference", "tf.nn", "--size", "75x64")
    assert ran.code == 0, ran.out + ran.err
    mapping.write_text(mapping.read_text().replace(f"stride: {output_stride}", "stride: 5"))
    assert "network.output_stride: 5 is none of the strides" in run("convert", larger, "--mapping", mapping).err


def test_found_below_any_scope(larger, run, tmp_path):
    ran = run("convert", larger, "-o", tmp_path / "x.pth")
    assert ran.code == 2
    assert "to port 206 of its 210 variables use --backbone" in ran.err
    ran = run("convert", larger, "--backbone", "-o", tmp_path / "a.pth")
    assert ran.code == 0, ran.err
    assert "mapped    206 variables, 4 left; 0 ignored" in ran.out
    assert "left      Extractor/MobilenetV3/Conv_2 2, Head 2" in ran.out
    maps = porter.create_model("small_075", larger, features_only=True)(torch.zeros(1, 3, 64, 64))
    again = porter.create_model("small_075", tmp_path / "a.pth", features_only=True)(torch.zeros(1, 3, 64, 64))
    assert all(torch.allclose(one, other, atol=1e-4) for one, other in zip(maps, again, strict=True))


def test_timm_takes_it(larger, timm, run, tmp_path):
    assert run("convert", larger, "--backbone", "-o", tmp_path / "a.pth").code == 0
    model = timm.create_model("tf_mobilenetv3_small_075", features_only=True).eval()
    model.load_state_dict(torch.load(tmp_path / "a.pth", weights_only=True), strict=True)
    x = torch.rand(1, 3, 64, 64)
    ours = porter.create_model("small_075", tmp_path / "a.pth", features_only=True)
    with torch.no_grad():
        for one, other in zip(ours(x), model(x), strict=True):
            assert torch.allclose(one, other, atol=1e-4 * float(other.abs().max()))


def test_other_names(larger, run, tmp_path):
    """Where shapes and names leave no doubt, as `draft` sees it; and where they do."""
    from porter.sources import open_checkpoint

    opened = open_checkpoint(larger)
    values = {name: variable.read() for name, variable in opened.items()}
    foreign = {
        name.replace("Extractor/MobilenetV3", "net").replace("expanded_conv", "block").replace("weights", "kernel"): v
        for name, v in values.items()
    }
    write_bundle(tmp_path / "foreign", foreign)
    ran = run("convert", tmp_path / "foreign", "--backbone", "-o", tmp_path / "a.pth")
    assert ran.code in (0, 2)
    if ran.code:
        assert "`mnv3-port draft` proposes names" in ran.err
        assert not (tmp_path / "a.pth").exists()
    else:
        assert run("convert", larger, "--backbone", "-o", tmp_path / "b.pth").code == 0
        assert run("diff", tmp_path / "a.pth", tmp_path / "b.pth").code == 0


def test_two_of_them(larger, run, tmp_path):
    from porter.sources import open_checkpoint

    values = {name: variable.read() for name, variable in open_checkpoint(larger).items()}
    write_bundle(tmp_path / "twice", values | {f"Second/{name}": value for name, value in values.items()})
    ran = run("convert", tmp_path / "twice", "--backbone", "-o", tmp_path / "a.pth")
    assert ran.code == 2
    assert "holds 2 backbones, below Extractor/MobilenetV3, Second/Extractor/MobilenetV3" in ran.err


def test_none_in_it(run, tmp_path):
    write_bundle(tmp_path / "other", {"a/kernel": np.zeros((3, 3), np.float32)})
    ran = run("convert", tmp_path / "other", "--backbone", "-o", tmp_path / "a.pth")
    assert ran.code == 2
    assert "no MobileNetV3 backbone in it" in ran.err


def test_a_missing_variable(larger, run, tmp_path):
    from porter.sources import open_checkpoint

    values = {name: variable.read() for name, variable in open_checkpoint(larger).items()}
    del values["Extractor/MobilenetV3/expanded_conv_3/project/weights"]
    write_bundle(tmp_path / "half", values)
    ran = run("convert", tmp_path / "half", "--backbone", "-o", tmp_path / "a.pth")
    assert ran.code == 2
    assert "closest is small_075 with 205 of 206 variables" in ran.err


@pytest.mark.slow
@pytest.mark.tensorflow
@pytest.mark.parametrize("nested", [False, True])
def test_keras_models_with_heads(tf, tmp_path, run, nested):
    """keras.applications with two dense heads and a pyramid on inner layers, trained, in every form it is saved in."""
    keras = pytest.importorskip("keras")
    base = keras.applications.MobileNetV3Small((64, 64, 3), alpha=0.75, include_top=False, weights=None)
    given = keras.Input((64, 64, 3)) if nested else base.input
    last = base(given) if nested else base.output
    pooled = keras.layers.GlobalAveragePooling2D()(last)
    outputs = [keras.layers.Dense(count, name=name)(pooled) for count, name in ((5, "colour"), (3, "kind"))]
    if not nested:
        inner = [base.get_layer(name).output for name in ("expanded_conv_2_project_bn", "expanded_conv_7_project_bn")]
        outputs += [keras.layers.Conv2D(8, 1, name=f"lateral_{n}")(one) for n, one in enumerate(inner)]
    model = keras.Model(given, outputs)
    model.compile("sgd", "mse")
    targets = [np.ones((4, *output.shape[1:]), np.float32) for output in outputs]
    model.fit(np.random.default_rng(0).uniform(0, 255, (4, 64, 64, 3)), targets, epochs=2, verbose=0)
    model.save(tmp_path / "a.keras")
    model.save_weights(tmp_path / "a.weights.h5")
    model.export(tmp_path / "saved", verbose=False)
    for name in ("a.keras", "a.weights.h5", "saved"):
        assert "--backbone" in run("convert", tmp_path / name, "-o", tmp_path / "x.pth").err
        ported = tmp_path / f"{name}.safetensors"
        assert run("convert", tmp_path / name, "--backbone", "-o", ported).code == 0
    assert run("diff", tmp_path / "a.keras.safetensors", tmp_path / "saved.safetensors").code == 0
    assert run("diff", tmp_path / "a.keras.safetensors", tmp_path / "a.weights.h5.safetensors").code == 0
    ran = run("verify", tmp_path / "saved", ported, "--backbone", "--size", "75x64")
    assert ran.code == 0, ran.out + ran.err
    taps = ["expanded_conv_3_project_bn", "expanded_conv_8_project_bn"]  # blocks without an addition
    theirs = keras.Model(base.input, [base.get_layer(name).output for name in taps])
    pixels = np.random.default_rng(1).uniform(0, 255, (1, 64, 64, 3)).astype(np.float32)
    ours = porter.create_model("small_075", ported)

    found = endpoints(ours, torch.from_numpy(pixels / 127.5 - 1).permute(0, 3, 1, 2))
    for endpoint, expected in zip(("layer_5", "layer_10"), map(np.asarray, theirs(pixels)), strict=True):
        distance = np.abs(found[endpoint].permute(0, 2, 3, 1).numpy() - expected).max()
        assert distance < 1e-4 * np.abs(expected).max()


def test_backbones_are_no_classifiers():
    assert set(list_backbones()) == {
        *("large_seg", "small_seg", "large_detection", "small_detection"),
        *("large_minimal_detection", "small_minimal_detection"),
    }
    assert not set(list_backbones()) & set(porter.list_variants())
    for name in list_backbones():
        assert load_variant(name).top == "none"
        maps = porter.create_model(name, features_only=True)(torch.zeros(1, 3, 65, 65))
        assert maps[-1].shape == (1, 480 if name.startswith("large") else 288, 3, 3)
        embedding = porter.create_model(name, num_classes=0)(torch.zeros(1, 3, 65, 65))
        assert embedding.shape[0] == 1


@pytest.mark.skipif(not (SHARED.parent / "real").is_dir(), reason="no real files")
def test_a_users_segmenter(run, tmp_path):
    source = SHARED.parent / "real" / "lraspp_small_user.pb"
    ran = run("convert", source, "--backbone", "-o", tmp_path / "a.safetensors")
    assert ran.code == 0, ran.err
    assert "left      aspp0 5, image_pooling 2, decoder 4" in ran.out
    assert (tmp_path / "a.safetensors").stat().st_size > 1_000_000
