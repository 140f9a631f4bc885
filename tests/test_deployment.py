"""``porter.deploy``: the same function as the model it was made of, at every endpoint, size and batch."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import porter
from porter.mapping.files import list_variants
from porter.models import deployment
from porter.models.endpoints import capture, endpoints


def trained(variant, **options):
    """A model whose batch norms do something."""
    torch.manual_seed(0)
    model = porter.create_model(variant, **options)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2)
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.normal_(module.bias, 0, 0.1)
    return model


def images(batch, height, width, seed=0):
    values = np.random.default_rng(seed).uniform(-1, 1, (batch, 3, height, width))
    return torch.from_numpy(values.astype(np.float32))


def furthest(ours, theirs):
    return float((ours - theirs).abs().max() / theirs.abs().max())


@pytest.mark.parametrize("variant", list_variants())
@pytest.mark.parametrize(("batch", "size"), [(1, (96, 64)), (9, (75, 65))])
def test_every_endpoint(variant, batch, size):
    model = trained(variant)
    fast = porter.deploy(model, size)
    x = images(batch, *size)
    expected, found = endpoints(model, x), {}
    with capture(fast, lambda name, tensor: found.update({name: tensor.clone()})):
        logits = fast(x)
    assert list(found) == list(expected)
    for name, theirs in expected.items():
        assert furthest(found[name].reshape(theirs.shape), theirs) < 1e-5, name
    assert torch.equal(logits, found["Logits"])
    assert torch.equal(fast(x), logits)  # and without anybody listening
    fast.part = 2
    assert furthest(fast(x), logits) < 1e-5


@pytest.mark.parametrize("variant", list_variants())
@pytest.mark.parametrize("size", [(96, 64), (75, 65)])
def test_what_a_compiler_is_given(variant, size, monkeypatch):
    """Other operations, the same function."""
    model, x = trained(variant), images(2, *size)
    fast = porter.deploy(model, size)
    with torch.no_grad():
        expected = model(x)
        monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
        found = fast(x)
    assert furthest(found, expected) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("in_parts", [False, True])
def test_compiled(in_parts, monkeypatch):
    monkeypatch.setattr(deployment, "PART_PIXELS", 2 * 64 * 64)
    model = trained("small_minimal_100")
    fast = porter.deploy(model, 64)
    if in_parts:
        fast.compile()
    compiled = fast if in_parts else torch.compile(fast)
    with torch.no_grad():
        for batch in (1, 2, 5):  # the third with a batch of any size
            x = images(batch, 64, 64)
            assert furthest(compiled(x), model(x)) < 1e-5


def test_compile_is_of_parts(monkeypatch):
    """Not of batches, which would be as slow as they are large."""
    monkeypatch.setattr(deployment, "PART_PIXELS", 2 * 64 * 64)
    sizes = []

    def compiler(run, **options):
        assert options == {"mode": "default"}
        return lambda x: sizes.append(len(x)) or run(x)

    monkeypatch.setattr(torch, "compile", compiler)
    model, x = trained("small_minimal_100"), images(5, 64, 64)
    fast = porter.deploy(model, 64)
    fast.compile(mode="default")
    with torch.no_grad():
        assert furthest(fast(x), model(x)) < 1e-5
    assert sizes == [2, 2, 1]


@given(st.integers(1, 70), st.integers(1, 70), st.integers(1, 3))
@settings(max_examples=12, deadline=None)
def test_any_size(height, width, batch):
    model = trained("small_075")
    x = images(batch, height, width)
    with torch.no_grad():
        assert furthest(porter.deploy(model, (height, width))(x), model(x)) < 1e-5


@pytest.mark.parametrize("options", [{"num_classes": 0}, {"num_classes": 7}, {"in_chans": 1}, {"layout": "slim"}])
def test_other_models(options):
    model = trained("small_100", **options)
    x = images(2, 64, 64)[:, : options.get("in_chans", 3)]
    with torch.no_grad():
        assert furthest(porter.deploy(model, 64)(x), model(x)) < 1e-5


def test_without_onednn(monkeypatch):
    """As on a torch that has none."""
    model, x = trained("small_075"), images(1, 224, 224)
    with torch.no_grad():
        expected = model(x)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert furthest(porter.deploy(model)(x), expected) < 1e-5


def test_many_and_few_results_agree(monkeypatch):
    model, x = trained("large_075"), images(2, 96, 96)
    found = []
    for limit in (0, 10**9):  # read when deployed
        monkeypatch.setattr(deployment, "FEW_RESULTS", limit)
        found.append(porter.deploy(model, 96)(x))
    assert furthest(*found) < 1e-5
    assert not torch.equal(*found)


def test_the_model_stays_as_it_is():
    model = trained("small_075")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    fast = porter.deploy(model)
    fast(images(1, 224, 224))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert list(fast.parameters()) == []
    x = images(1, 224, 224)
    kept = x.clone()
    fast(x)
    assert torch.equal(x, kept)


def test_refused():
    fast = porter.deploy(porter.create_model("small_075"), 64)
    with pytest.raises(ValueError, match="deployed for 64x64 images, not 65x64"):
        fast(images(1, 65, 64))
    with pytest.raises(ValueError, match="takes a float32 model"):
        porter.deploy(porter.create_model("small_075").double())


@pytest.mark.tensorflow
def test_verify(demo_folder, run):
    ran = run("verify", demo_folder, "--deploy", "--reference", "tf.nn", "--size", "75x64")
    assert ran.code == 0, ran.err
    assert "same function" in ran.out
    ran = run("verify", demo_folder, "--deploy", "--dtype", "float64")
    assert ran.code == 2
    assert "a form for inference, and that in float32" in ran.err


@pytest.mark.slow
def test_verify_all_six(released, run):
    ran = run("verify", released[1], "--deploy", "--reference", released[1] / "expected.npz")
    assert ran.code == 0, ran.out


def test_endpoints_that_are_handed_out_stay_as_they_are(demo_folder):
    """Squeeze-excite scales in place what depthwise_output was."""
    from porter.models.endpoints import capture, endpoints

    model = porter.create_model("small_075", demo_folder)
    images = torch.from_numpy(np.random.default_rng(0).uniform(-1, 1, (1, 3, 64, 64)).astype("f"))
    found, deployed = {}, porter.deploy(model, (64, 64))
    with torch.no_grad(), capture(deployed, found.__setitem__):
        deployed(images)
    for name, tensor in endpoints(model, images).items():
        assert torch.allclose(found[name], tensor, atol=1e-4 * float(tensor.abs().max())), name
