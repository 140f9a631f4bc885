"""Mapping files: the six are complete and right, and mistakes are named by file, line and key."""

import json
from pathlib import Path
from typing import get_args

import pytest

from porter.errors import MappingError
from porter.mapping.files import (
    Names,
    list_networks,
    list_variants,
    load_mapping,
    load_variant,
    mapping_digest,
    mappings_folder,
)
from porter.mapping.rules import expected_variables
from porter.network.network import build_network, make_divisible

# Learnable parameters at 1000 classes (shared/FACTS.md, from timm's cards)
PARAMETERS = {
    "large_075": 3_993_528,
    "large_100": 5_483_032,
    "large_minimal_100": 3_924_288,
    "small_075": 2_041_872,
    "small_100": 2_542_856,
    "small_minimal_100": 2_044_736,
    # The published 4.0 M and 2.9 M (slim/nets/mobilenet/README.md), worked out from the table
    "edgetpu_075": 2_988_160,
    "edgetpu_100": 4_091_432,
}


@pytest.mark.parametrize("variant", list_variants())
def test_parameters(variant):
    mapping = load_variant(variant)
    expected = expected_variables(mapping, build_network(mapping), classes=1000)
    trained = [e.shape for e in expected if not e.target.endswith(("running_mean", "running_var"))]
    total = 0
    for shape in trained:
        count = 1
        for size in shape:
            count *= size
        total += count
    assert total == PARAMETERS[variant]


@pytest.mark.parametrize("variant", [variant for variant in list_variants() if variant != "edgetpu_075"])  # not in timm
def test_targets_are_timms_keys(variant):
    """Against the keys that timm itself printed (scripts/record_timm_keys.py)."""
    timm_keys = json.loads((Path(__file__).parent / "data" / "timm_keys.json").read_text())["keys"][variant]
    mapping = load_variant(variant)
    targets = [e.target for e in expected_variables(mapping, build_network(mapping), classes=1000)]
    assert sorted(targets) == sorted(key for key in timm_keys if not key.endswith("num_batches_tracked"))


@pytest.mark.parametrize(
    ("value", "expected"), [(12, 16), (18, 24), (30, 32), (36, 40), (60, 64), (147.2, 144), (3, 8)]
)
def test_make_divisible(value, expected):
    assert make_divisible(value, 8) == expected


def write(tmp_path, text):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("base: small_100.yaml\nscope: [a]\n", r"mine.yaml:2: scope: Expected `str`, got `array`"),
        ("base: small_100.yaml\nnetwork:\n  multiplier: 1.0\n  depth: 3\n", r"mine.yaml:4: network: .*unknown field `depth`"),
        ("base: small_100.yaml\nnetwork: {stem: {activation: gelu}}\n", r"mine.yaml:2: network.stem.activation: Invalid enum"),
        ("base: small_100.yaml\nnetwork:\n  blocks:\n    - {stage: 0}\n", r"mine.yaml:4: network.blocks\[0\]: .*missing required field"),
        ("variant: x\n", r"mine.yaml:1: top level: .*missing required field `input`"),
        ("a: 1\nb: 2\na: 3\n", r"mine.yaml:3: key 'a' stands twice"),
        ("a: [1\n", r"mine.yaml: not readable as YAML: .*line 2"),
        ("- 1\n", r"mine.yaml:1: a mapping file is a YAML mapping"),
        ("", r"mine.yaml:1: a mapping file is a YAML mapping"),
        ("base: none.yaml\n", r"base 'none.yaml' is neither beside it nor among the installed"),
        ("base: ../mappings/small_100.yaml\n", r"is neither beside it nor among the installed"),
        ("base: mine.yaml\n", r"its base leads back to itself"),
        ("base: small_100.yaml\nmodule: 'blocks.{stag}'\n", r"mine.yaml:2?:? ?.*stag"),
        (
            "base: small_100.yaml\nrules:\n  squeeze_excite:\n    - {from: '{wide}/a', to: b.weight, layout: conv}\n",
            r"mine.yaml:4: rules.squeeze_excite\[0\]: 'wide' is not known here; known: last_conv,",
        ),
        (
            "base: small_100.yaml\nrules:\n  squeeze_excite:\n    - {from: a, to: b.weight, layout: vector}\n",
            r"mine.yaml:4: rules.squeeze_excite\[0\].to: the network has no entry b.weight",
        ),
        (
            "base: small_100.yaml\nrules:\n  stem:\n    - {from: a, to: conv_stem.weight, layout: vector}\n",
            r"mine.yaml:4: rules.stem\[0\].layout: conv_stem.weight: layout vector gives 1 axes, the entry has 4",
        ),
        (
            "base: edgetpu_100.yaml\nnetwork:\n  blocks:\n"
            "    - {stage: 0, kernel: 3, expansion: 4, out: 16, se: true, activation: relu, stride: 2, fused: true}\n",
            r"mine.yaml:4: network.blocks\[0\].se: a fused block has no squeeze-excite",
        ),
        (
            "base: edgetpu_100.yaml\nnetwork:\n  blocks:\n"
            "    - {stage: 0, kernel: 3, expansion: 1, out: 16, se: false, activation: relu, stride: 2, fused: true}\n",
            r"mine.yaml:4: network.blocks\[0\].stride: a fused block with expansion 1 is a 1x1 projection",
        ),
        ("base: lraspp_small.yaml\nsegmentation:\n  low: layer_2/expansion_output\n", r"mine.yaml:3: segmentation.low: 'layer_2/expansion_output' is none of layer_2/depthwise"),
        ("base: lraspp_small.yaml\nsegmentation:\n  window: [5]\n", r"mine.yaml:3: segmentation.window: Expected `array` of length >= 2"),
        ("base: small_100.yaml\nnetwork:\n  multiplier: .nan\n", r"mine.yaml:3: network.multiplier: Expected `float` > 0"),
        (
            "base: small_100.yaml\ninput: {mean: [0.5]}\n",
            r"mine.yaml:2: input.mean: has 1 numbers for 3 channels",
        ),
        (
            "base: small_100.yaml\nnetwork:\n  blocks:\n"
            "    - {stage: 1, kernel: 3, expansion: 1, out: 16, se: true, activation: relu, stride: 2}\n",
            r"mine.yaml:4: network.blocks\[0\].stage: stages count up from 0",
        ),
        (
            "base: small_100.yaml\nnetwork:\n  blocks:\n"
            "    - {stage: 0, kernel: 3, expansion: 7/0, out: 16, se: true, activation: relu, stride: 2}\n",
            r"mine.yaml:4: network.blocks\[0\].expansion: '7/0' is no number",
        ),
    ],
)  # fmt: skip
def test_mistakes_are_located(tmp_path, text, message):
    with pytest.raises(MappingError, match=message):
        load_mapping(write(tmp_path, text))


def test_mistake_in_the_base_names_the_base(tmp_path):
    (tmp_path / "below.yaml").write_text("base: small_100.yaml\n\nscope: 3\n")
    with pytest.raises(MappingError, match=r"below.yaml:3: scope"):
        load_mapping(write(tmp_path, "base: below.yaml\nvariant: x\n"))


def test_binary_file(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(MappingError, match="not readable as YAML"):
        load_mapping(path)


def test_user_mapping_merges_over_its_base(tmp_path):
    mapping = load_mapping(write(tmp_path, "base: large_075.yaml\nscope: Mine\nclasses: {count: 12}\n"))
    assert (mapping.scope, mapping.classes.count, mapping.network.multiplier) == ("Mine", 12, 0.75)
    assert len(mapping.network.blocks) == 15
    assert mapping_digest(mapping) != mapping_digest(load_variant("large_075"))


def test_ignore_adds_to_the_bases(tmp_path):
    mapping = load_mapping(
        write(tmp_path, "base: small_100.yaml\nignore:\n  - {pattern: 'aux/*', reason: another head}\n")
    )
    assert mapping.ignore[:-1] == load_variant("small_100").ignore
    assert mapping.ignore[-1].pattern == "aux/*"
    path = write(tmp_path, "base: small_100.yaml\nignore:\n  - {pattern: a, reason: b}\n  - {pattern: c}\n")
    with pytest.raises(MappingError, match=r"mine.yaml:4: ignore\[12\]: .*missing required field `reason`"):
        load_mapping(path)


def test_a_file_for_version_0_1(tmp_path):
    """Written by 9ccb27a, with shapes, symbols and placeholders that the network has now."""
    for variant in ("ssdlite_small",):
        old = load_mapping(Path(__file__).parent / "data" / "9ccb27a" / f"{variant}.yaml")
        new = load_variant(variant)
        one, other = (expected_variables(mapping, build_network(mapping), 5) for mapping in (old, new))
        assert one == other


def test_unknown_variant():
    with pytest.raises(MappingError, match="unknown variant 'big'; there are\n  classifiers: edgetpu_075") as raised:
        load_variant("big")
    assert all(name in str(raised.value) for name in list_networks())


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("smal_075", "small_075"),
        ("large-100", "large_100"),
        ("tf_mobilenetv3_small_75", "tf_mobilenetv3_small_075"),
        ("lraspp_smal", "lraspp_small"),
    ],
)
def test_did_you_mean(typed, meant):
    with pytest.raises(MappingError, match=f"unknown variant '{typed}'; did you mean {meant}\\?; there are"):
        load_variant(typed)


def test_timms_names():
    assert load_variant("tf_mobilenetv3_small_075") == load_variant("small_075")
    assert load_variant("mobilenet_edgetpu_100", "keras").variant == "edgetpu_100"


def test_variants_and_names_are_all_the_files():
    assert {path.stem for path in mappings_folder().glob("*.yaml")} == {
        *list_variants(),
        *list_networks(),
        *get_args(Names),
    }
