"""Every variant against what the original graph made of its demo weights: needs neither TensorFlow nor other files.

scripts/record_original_outputs.py made the records.
"""

from pathlib import Path

import pytest

import porter
from porter.mapping.files import list_variants
from porter.parity.demo import write_demo_checkpoint

RECORDS = Path(__file__).parent / "data" / "original"


@pytest.fixture(scope="module", params=list_variants())
def source(request, tmp_path_factory):
    return write_demo_checkpoint(tmp_path_factory.mktemp("demo"), request.param), request.param


def compared(source, record):
    folder, variant = source
    # Of the logits only some are recorded: the background is one of the classes that they are counted from
    return porter.verify(folder, variant=variant, reference=str(RECORDS / f"{record}.npz"), keep_background=True)


def test_the_port_is_the_original_function(source):
    verdict = compared(source, source[1])
    assert verdict.passed, verdict.sentence()
    assert len(verdict.worst_rows()) >= 50
    assert verdict.precision == "float64"


@pytest.mark.parametrize("source", ["small_075"], indirect=True)
def test_another_variants_record_is_no_parity(source):
    try:
        assert not compared(source, "small_100").passed
    except porter.PorterError as error:  # their shapes differ already
        assert "shape" in str(error)
