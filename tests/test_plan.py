"""The plan is strict: all that does not fit is listed at once, and no tensor is read."""

import numpy as np
import pytest

from porter.errors import CheckpointError, MappingError
from porter.mapping.apply import carry_out
from porter.mapping.identify import match_variants
from porter.mapping.options import PortOptions
from porter.port import plan_port
from porter.sources import open_checkpoint

STEM = "MobilenetV3/Conv/weights"
CLASSIFIER = "MobilenetV3/Logits/Conv2d_1c_1x1"


def test_all_six_are_identified_and_leave_nothing_over(released):
    variant, folder = released
    opened = open_checkpoint(folder)
    assert match_variants(opened)[0].variant == variant
    plan = plan_port(opened).plan
    assert plan.variant == variant
    assert dict(plan.ignored) == {"global_step": "training step counter"}
    assert len(plan.steps) == len(opened) - 1


def test_planning_reads_no_tensor(demo_copy):
    data = demo_copy.with_name("model-1000.data-00000-of-00001")
    data.write_bytes(bytes(data.stat().st_size))  # every checksum is wrong now
    port = plan_port(demo_copy, PortOptions("small_075"))
    with pytest.raises(CheckpointError, match="checksum"):
        carry_out(port.plan, port.checkpoint)


def test_every_offender_is_listed(make_checkpoint):
    def change(variables):
        del variables["MobilenetV3/Conv/BatchNorm/beta"]
        variables[STEM] = variables[STEM][:, :, :, :8]
        variables["MobilenetV3/extra"] = np.zeros(3, "f")
        variables["MobilenetV3/Conv_2/biases"] = variables["MobilenetV3/Conv_2/biases"].astype("i4")

    with pytest.raises(MappingError) as caught:
        plan_port(make_checkpoint(change), PortOptions("small_075"))
    text = str(caught.value)
    assert "(4 problems)" in text
    assert "MobilenetV3/Conv/BatchNorm/beta: missing in the checkpoint" in text
    assert f"{STEM}: shape [3, 3, 3, 8], expected [3, 3, 3, 16]" in text
    assert "MobilenetV3/extra: in the checkpoint, but no rule uses or ignores it" in text
    assert "MobilenetV3/Conv_2/biases: dtype int32, expected a float" in text


def test_wrong_variant_names_the_right_one(demo_folder):
    with pytest.raises(MappingError, match="is a small_075 checkpoint, not large_100; use variant='small_075'"):
        plan_port(demo_folder, PortOptions("large_100"))


def test_no_variant_fits(make_checkpoint):
    checkpoint = make_checkpoint(lambda v: v.update({STEM: np.zeros((5, 5, 3, 16), "f")}))
    with pytest.raises(MappingError, match="no variant fits; closest is small_075 with 209 of 210"):
        plan_port(checkpoint)


@pytest.mark.parametrize(("classes", "keep", "kept", "dropped"), [
    (1001, False, 1000, True), (1001, True, 1001, False), (1000, False, 1000, False), (5, False, 5, False),
])  # fmt: skip
def test_classes_follow_the_checkpoint(make_checkpoint, classes, keep, kept, dropped):
    checkpoint = make_checkpoint(classes=classes)
    port = plan_port(checkpoint, PortOptions(keep_background=keep))
    assert (port.plan.num_classes, port.plan.background_dropped) == (kept, dropped)
    values = carry_out(port.plan, port.checkpoint).arrays["classifier.bias"]
    stored = port.checkpoint[f"{CLASSIFIER}/biases"].read()
    assert values.tolist() == stored[classes - kept :].tolist()


def test_wrong_class_count(make_checkpoint):
    with pytest.raises(MappingError, match="the classifier has 5 classes, not 10"):
        plan_port(make_checkpoint(classes=5), PortOptions(num_classes=10))


def test_classifier_that_disagrees_with_itself(make_checkpoint):
    checkpoint = make_checkpoint(lambda v: v.update({f"{CLASSIFIER}/biases": np.zeros(9, "f")}), classes=5)
    with pytest.raises(MappingError, match=r"biases: shape \[9\], expected \[5\]"):
        plan_port(checkpoint, PortOptions("small_075"))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite(make_checkpoint, value):
    def change(variables):
        variables[STEM][1, 2, 0, 3] = value

    port = plan_port(make_checkpoint(change))
    with pytest.raises(CheckpointError, match=f"tensor {STEM}: 1 of 432 values are NaN or infinite"):
        carry_out(port.plan, port.checkpoint)


def test_user_mapping_with_another_scope(make_checkpoint, tmp_path):
    def change(variables):
        for name in [n for n in variables if n.startswith("MobilenetV3/")]:
            variables[name.replace("MobilenetV3/", "tower/net/")] = variables.pop(name)
        variables["tower/aux"] = np.zeros(2, "f")

    mapping = tmp_path / "mine.yaml"
    mapping.write_text(
        "base: small_075.yaml\nscope: tower/net\nclasses: {background: 0, background_of: 6}\n"
        "ignore:\n  - {pattern: global_step, reason: counter}\n  - {pattern: tower/aux, reason: auxiliary head}\n"
    )
    plan = plan_port(make_checkpoint(change, classes=6), PortOptions(mapping=mapping)).plan
    assert (plan.num_classes, plan.background_dropped) == (5, True)
    assert plan.ignored["tower/aux"] == "auxiliary head"


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ("{from: Conv_2/biases, to: classifier.bias, layout: vector}", "classifier.bias: filled twice"),
        ("{from: Conv_2/biases, to: conv_tail.bias, layout: vector}", r"slim.yaml:78: rules.head[1].to: the network has no entry conv_tail.bias"),
    ],
)  # fmt: skip
def test_targets_are_filled_exactly_once(demo_folder, tmp_path, rule, message):
    slim = tmp_path / "slim.yaml"
    from porter.mapping.files import mappings_folder

    lines = (mappings_folder() / "slim.yaml").read_text().splitlines()
    wanted = next(i for i, line in enumerate(lines) if "Conv_2/biases" in line)
    lines[wanted] = f"    - {rule}"
    slim.write_text("\n".join(lines))
    for name in ("small_100.yaml", "small_075.yaml"):
        (tmp_path / name).write_text((mappings_folder() / name).read_text())
    with pytest.raises(MappingError) as caught:
        plan_port(demo_folder, PortOptions(mapping=tmp_path / "small_075.yaml"))
    assert message in str(caught.value)
    assert "tail" in rule or "conv_head.bias: no rule fills it" in str(caught.value)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_other_floats_become_float32(make_checkpoint, dtype):
    import ml_dtypes

    kind = ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype
    port = plan_port(make_checkpoint(lambda v: v.update({STEM: v[STEM].astype(kind)})))
    assert port.checkpoint[STEM].dtype == dtype
    values = carry_out(port.plan, port.checkpoint).arrays["conv_stem.weight"]
    assert values.dtype == np.float32
    assert np.array_equal(values, port.checkpoint[STEM].read().astype("f").transpose(3, 2, 0, 1))
