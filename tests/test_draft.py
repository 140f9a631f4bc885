"""``draft``: proposals for renamed checkpoints, and honest marks where it had to choose."""

import numpy as np
import pytest
import torch

from porter.draft import draft
from porter.errors import MappingError
from porter.parity.demo import demo_variables
from porter.sources.bundle_writer import write_bundle

VARIANT = "small_075"
SHORT = [
    ("MobilenetV3/", "net/"), ("expanded_conv", "block"), ("squeeze_excite", "se"), ("BatchNorm", "bn"),
    ("depthwise_weights", "w"), ("weights", "w"), ("biases", "b"), ("moving_mean", "mean"),
    ("moving_variance", "var"), ("Logits/Conv2d_1c_1x1", "fc"),
]  # fmt: skip


def short(name):
    for old, new in SHORT:
        name = name.replace(old, new)
    return name


def write(tmp_path, rename, classes=38, change=lambda variables: None):
    variables = {rename(name): value for name, value in demo_variables(VARIANT, classes=classes).items()}
    change(variables)
    write_bundle(tmp_path / "model-1", variables)
    return tmp_path / "model-1"


def same_port(run, tmp_path, source, text):
    """The drafted mapping gives the state dict that slim's own names give."""
    (tmp_path / "draft.yaml").write_text(text)
    write_bundle(tmp_path / "plain", demo_variables(VARIANT, classes=38))
    for name, options in ((source, ["--mapping", tmp_path / "draft.yaml"]), (tmp_path / "plain", [])):
        ran = run("convert", name, "-o", tmp_path / f"{name.name}.pth", *options)
        assert ran.code == 0, ran.err
    a, b = (torch.load(tmp_path / f"{x}.pth", weights_only=True) for x in ("model-1", "plain"))
    return list(a) == list(b) and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("to", [VARIANT, "tf_mobilenetv3_small_075", "state dict"])
def test_another_scope(tmp_path, run, to):
    source = write(tmp_path, lambda name: f"tower/{name}" if "/" in name else name)
    if to == "state dict":
        import porter

        torch.save(porter.create_model(VARIANT, num_classes=5).state_dict(), tmp_path / "model.pth")
        to = tmp_path / "model.pth"
    ran = run("draft", source, "--to", to)
    assert ran.code == 0, ran.err
    assert 'scope: "tower/MobilenetV3"' in ran.out
    assert "UNCERTAIN," not in ran.out
    assert "variables:" not in ran.out
    assert same_port(run, tmp_path, source, ran.out)


def test_other_names(tmp_path, run):
    source = write(tmp_path, short)
    proposal = draft(str(source), VARIANT)
    assert all(choice.name is not None for choice in proposal.choices)
    assert proposal.uncertain < 20
    assert same_port(run, tmp_path, source, proposal.yaml())


def test_no_names_at_all(tmp_path):
    """Shapes and order alone: whatever has a rival of its shape is marked, whatever has none is right."""
    names = [name for name in demo_variables(VARIANT) if name != "global_step"]
    new = {name: f"v{number:03d}" for number, name in enumerate(names)} | {"global_step": "global_step"}
    source = write(tmp_path, new.__getitem__)
    proposal = draft(str(source), VARIANT)
    shapes = [value.shape for value in demo_variables(VARIANT, classes=38).values()]
    for choice in proposal.choices:
        unique = shapes.count(choice.wanted.shape) == 1
        assert choice.certain == unique, choice
        if unique:
            assert choice.name == new[f"MobilenetV3/{choice.wanted.source}"]
        else:
            assert choice.others
    assert "UNCERTAIN, as well: v0" in proposal.yaml()


def test_missing_and_extra(tmp_path):
    def change(variables):
        del variables["net/Conv/bn/gamma"], variables["net/Conv_2/w"]
        variables["net/extra[1]"] = np.zeros(7, "f")

    text = draft(str(write(tmp_path, short, change=change)), VARIANT).yaml()
    assert '"Conv_2/weights": MISSING' in text
    assert 'pattern: "net/extra[[]1]"' in text


def test_written_atomically(tmp_path, run):
    source = write(tmp_path, short)
    ran = run("draft", source, "--to", VARIANT, "-o", tmp_path / "m.yaml")
    assert ran.code == 0
    assert "(210 variables," in ran.out
    assert run("draft", source, "--to", VARIANT, "-o", tmp_path / "m.yaml").code == 2


@pytest.mark.parametrize("to", ["big", "resnet50"])
def test_unknown_target(tmp_path, to):
    with pytest.raises(MappingError, match=f"{to}: no variant"):
        draft(str(write(tmp_path, short)), to)


def test_state_dict_of_another_network(tmp_path):
    torch.save({"w": torch.ones(3)}, tmp_path / "x.pth")
    with pytest.raises(MappingError, match=r"x\.pth: is the state dict of no variant"):
        draft(str(write(tmp_path, short)), str(tmp_path / "x.pth"))


def test_one_name_is_not_taken_twice(tmp_path):
    """Where all four of a batch norm look alike, the most similar was given to each."""

    def one_for_all(variables):
        values = variables.pop("MobilenetV3/Conv/BatchNorm/gamma")
        for part in ("beta", "moving_mean", "moving_variance"):
            del variables[f"MobilenetV3/Conv/BatchNorm/{part}"]
        variables["MobilenetV3/Conv/norm_values"] = values

    drafted = draft(str(write(tmp_path, str, change=one_for_all)), VARIANT)
    names = [choice.name for choice in drafted.choices if choice.name]
    assert len(names) == len(set(names))
    missing = [choice for choice in drafted.choices if choice.name is None]
    assert [choice.wanted.source for choice in missing] == [
        f"Conv/BatchNorm/{part}" for part in ("gamma", "beta", "moving_mean", "moving_variance")
    ]


@pytest.mark.slow
@pytest.mark.tensorflow
def test_by_the_graph(tf, tmp_path, run):
    """Layers of Keras with other names follow each other as the network's do; names then decide nothing."""
    base = tf.keras.applications.MobileNetV3Small(
        weights=None, input_shape=(64, 64, 3), minimalistic=True, include_top=False
    )
    for number, layer in enumerate(base.layers):
        layer.name = f"part_{len(base.layers) - number}"
    base.save(tmp_path / "m.keras")
    drafted = draft(str(tmp_path / "m.keras"), "small_minimal_100")
    assert (drafted.uncertain, drafted.bases) == (0, ("small_minimal_100.yaml", "keras.yaml"))
    (tmp_path / "draft.yaml").write_text(drafted.yaml())
    options = (["--mapping", tmp_path / "draft.yaml"], ["--backbone"])
    for name, more in zip(("a.pth", "b.pth"), options, strict=True):
        assert run("convert", tmp_path / "m.keras", "-o", tmp_path / name, *more).code == 0
    a, b = (torch.load(tmp_path / name, weights_only=True) for name in ("a.pth", "b.pth"))
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)
