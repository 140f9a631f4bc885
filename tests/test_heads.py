"""How many files a head touches outside its own, as docs/adding-a-network.md lists them."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "adding-a-network.md"
# Files of each head, and the modules and words by which others name it
OWN = {
    "segmentation": {
        "files": ("network/segmentation", "models/lraspp", "prediction/masks", "evaluation/masks"),
        "words": r"\b(Segmentation|LRASPP|lraspp|segmentation:|\.masks import|import [\w, ]*\bmasks\b)",
    },
    "detection": {
        "files": ("network/detection", "models/ssdlite", "prediction/boxes", "evaluation/boxes"),
        "words": r"\b(Detection|SSDLite|ssdlite|detection:|\.boxes import|import [\w, ]*\bboxes\b)",
    },
}
# Decoding and suppressing boxes in graphs is SSDLite's post-processing
IN_GRAPHS = {"exports/files", "exports/onnx_model", "exports/tflite_model", "network/nodes"}


def touched(head):
    """Modules outside the head's own whose code names it; docstrings and comments may."""
    found = set()
    for path in sorted((ROOT / "porter").rglob("*.py")):
        name = str(path.relative_to(ROOT / "porter").with_suffix(""))
        code = re.sub(r'""".*?"""|#[^\n]*', "", path.read_text(), flags=re.DOTALL)
        if name not in OWN[head]["files"] and re.search(OWN[head]["words"], code):
            found.add(name)
    return found


def test_segmentation_is_named_in_the_five_files_of_the_page():
    listed = PAGE.read_text().partition("Five others name it")[2].partition("Its rules are sections")[0]
    assert touched("segmentation") == set(re.findall(r"`porter/([\w/]+)\.py`", listed))
    assert len(touched("segmentation")) == 5


def test_detection_is_named_in_the_same_files():
    assert touched("detection") - IN_GRAPHS == touched("segmentation")
    assert touched("detection") >= IN_GRAPHS


@pytest.mark.parametrize("head", OWN)
def test_the_files_of_a_head_are_there(head):
    assert all((ROOT / "porter" / f"{name}.py").is_file() for name in OWN[head]["files"])
