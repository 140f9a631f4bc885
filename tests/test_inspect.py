"""``mnv3-port inspect``."""

import json

import pytest
from json_schemas import check_json


def test_every_variant_is_named(run, released):
    variant, folder = released
    ran = run("inspect", folder)
    assert ran.code == 0
    assert f"variant   {variant}, 1001 classes" in ran.out
    assert "MobilenetV3/Conv_1/weights" in ran.out


def test_slots_are_counted_not_listed(run, shared):
    ran = run("inspect", shared / "v3-small_224_0.75_float" / "pristine")
    assert "ignored   284: optimizer slot" in ran.out
    assert "RMSProp" not in ran.out
    assert "variables 210, 8,210,308 bytes" in ran.out


def test_json(run, demo_folder):
    found = json.loads(run("inspect", demo_folder, "--json").out)
    check_json(found, "inspect")
    assert found["variant"] == "small_075"
    assert found["step"] == 1000
    stem = next(v for v in found["variables"] if v["name"] == "MobilenetV3/Conv/weights")
    assert (stem["shape"], stem["dtype"], stem["bytes"]) == ([3, 3, 3, 16], "float32", 1728)


def test_unknown_network(run, make_checkpoint):
    ran = run("inspect", make_checkpoint(lambda v: v.pop("MobilenetV3/Conv/weights")))
    assert ran.code == 0
    assert "none fits; closest is small_075: 209 of 210 variables fit" in ran.out


def test_wrong_variant_is_refused(run, demo_folder):
    ran = run("inspect", "--variant", "large_075", demo_folder)
    assert ran.code == 2
    assert "is a small_075 checkpoint, not large_075; use --variant small_075" in ran.err


@pytest.mark.parametrize("kind", ["missing", "empty", "text"])
def test_nothing_to_inspect(run, tmp_path, kind):
    (tmp_path / "empty").mkdir()
    (tmp_path / "text").write_text("hello")
    ran = run("inspect", tmp_path / kind)
    assert ran.code == 2
    assert ran.err.count("\n") == 1


def test_the_summary_comes_first(run, demo_folder, tmp_path):
    assert run("convert", demo_folder, "-o", tmp_path / "a.safetensors").code == 0
    for source in (demo_folder, tmp_path / "a.safetensors"):
        lines = run("inspect", source).out.splitlines()
        assert lines[0].startswith("read      ")
        assert any(line.startswith("variant   small_075, 100") for line in lines[: lines.index("")])
        assert len(lines[lines.index("") :]) > 200
