"""The report: what it says of good and bad ports, and how Chromium lays it out."""

import re
import shutil
import subprocess

import numpy as np
import pytest
from tags import Tags

import porter.models.mobilenet_v3 as same_padding_module
from porter.mapping.options import PortOptions
from porter.parity.check import check_sample
from porter.parity.evidence import Evidence
from porter.parity.references.reference import Noise
from porter.parity.samples import noise, structured
from porter.parity.verdict import Verdict
from porter.parity.verify import Against, open_check
from porter.report.html import parity_html

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
]


def report(folder, *samples):
    """A verdict and its evidence, against TensorFlow's own arithmetic."""
    check = open_check(folder, None, PortOptions(), Against("tf.nn"))
    evidence = Evidence()
    for sample in samples:
        check_sample(check, sample, evidence)
    return check.verdict, evidence


@pytest.fixture(scope="module")
def good(tf, demo_folder):
    return report(demo_folder, noise((64, 64), 0), structured((75, 64)))


@pytest.fixture(scope="module")
def padded_wrongly(tf, demo_folder):
    """Symmetric padding, everybody's first mistake, on a flat image: what differs is at the borders."""
    right = same_padding_module.same_padding
    same_padding_module.same_padding = lambda *size: (right(*size)[1],) * 2
    try:
        flat = noise((64, 64), 0)._replace(images=np.ones((1, 64, 64, 3), np.float32))
        return report(demo_folder, flat)
    finally:
        same_padding_module.same_padding = right


def test_page_needs_nothing_else(good):
    page = parity_html(*good).decode()
    assert page == parity_html(*good).decode()
    tags = Tags()
    tags.feed(page)
    assert tags.open == []
    assert not any(tag in ("script", "link", "iframe") for tag, *_ in tags.attributes)
    links = [value for _, name, value in tags.attributes if name in ("src", "href")]
    assert links
    assert all(value.startswith(("data:image/png;base64,", "#")) for value in links)
    assert all(f'id="{value[1:]}"' in page for value in links if value.startswith("#"))
    for row in good[0].worst_rows():
        assert row.endpoint in page
    assert "Parity</span>: small_075" in page
    assert page.count("<figure>") == 2


def test_padding_error_shows_at_the_borders(padded_wrongly):
    verdict, evidence = padded_wrongly
    assert not verdict.passed
    heat = evidence.heat_map
    assert heat.row.endpoint == verdict.first_divergence().endpoint == "layer_1"
    assert heat.values.shape == (32, 32)
    assert heat.values[1:-1, 1:-1].max() < 1e-6 < heat.values[0].max()
    page = parity_html(verdict, evidence).decode()
    assert "No parity</span>" in page
    assert "<dt>first</dt><dd>layer_1 on noise" in page
    assert "The first layer beyond its limit" in page


def test_worst_channel_is_the_one_that_was_changed(good):
    _, evidence = good
    row = good[0].rows[0]
    theirs = np.random.default_rng(0).normal(size=(2, 4, 5, 6)).astype(np.float32)
    ours = theirs.copy()
    ours[1, 2, 3, 4] += 0.5
    fresh = Evidence()
    fresh.compared(row._replace(function=1.0, worst=(1, 2, 3, 4)), ours, theirs)
    assert fresh.channels[row.endpoint][0].channel == 4
    assert np.unravel_index(fresh.heat_map.values.argmax(), (4, 5)) == (2, 3)
    assert evidence.heat_map.row.excess == max(r.excess for r in good[0].rows if len(r.shape) == 4 and r.shape[1] > 1)


def test_values_that_are_not_finite(good):
    verdict, evidence = good
    broken = {"function": np.nan, "port": Noise(np.nan, np.nan)}
    bad = Verdict(**{**vars(verdict), "rows": [row._replace(**broken) for row in verdict.rows]})
    page = parity_html(bad, evidence).decode()
    assert "No parity" in page
    assert not re.search(r'(cx|cy|points|d)="[^"]*nan', page)


def measured(page, tmp_path, width, *flags):
    """Load the page in a frame of ``width`` pixels; returns (scroll width, background, text size of table cells)."""
    (tmp_path / "page.html").write_bytes(page)
    text = page.decode().replace("&", "&amp;").replace('"', "&quot;")
    script = (
        "onload = () => { const d = frames[0].document; const s = frames[0].getComputedStyle(d.body);"
        "document.title = [d.documentElement.scrollWidth, s.backgroundColor, frames[0].getComputedStyle("
        "d.querySelector('td')).fontSize, d.querySelectorAll('circle').length,"
        "[...d.images].every(i => i.complete && i.naturalWidth)].join(';') }"
    )
    frame = f'<iframe style="width:{width}px;height:800px;border:0" srcdoc="{text}"></iframe>'
    (tmp_path / "frame.html").write_text(f"<!doctype html><title>-</title>{frame}<script>{script}</script>")
    command = [CHROMIUM, *FLAGS, *flags, f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=4000"]
    ran = subprocess.run(
        [*command, "--dump-dom", (tmp_path / "frame.html").as_uri()], capture_output=True, text=True, timeout=120
    )
    return re.search("<title>(.*?)</title>", ran.stdout)[1].split(";")


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
@pytest.mark.parametrize("width", [360, pytest.param(1200, marks=pytest.mark.slow)])
def test_layout_in_chromium(good, padded_wrongly, tmp_path, width):
    for verdict, evidence in (good, padded_wrongly):
        found = measured(parity_html(verdict, evidence), tmp_path, width)
        assert found[0] == str(width)  # nothing sticks out sideways
        assert found[1] == "rgb(255, 255, 255)"
        assert float(found[2].removesuffix("px")) >= 12
        assert found[3] == str(3 * len(verdict.worst_rows()))  # float64, float32 and TensorFlow's float32
        assert found[4] == "true"


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
def test_dark_in_chromium(good, tmp_path):
    assert measured(parity_html(*good), tmp_path, 800, "--force-dark-mode")[1] == "rgb(20, 23, 27)"


def test_verify_writes_it(demo_folder, run, tmp_path):
    recorded = demo_folder / "expected.npz"
    ran = run("verify", demo_folder, "--reference", recorded, "--html", tmp_path / "a.html")
    assert ran.code == 0, ran.err
    page = (tmp_path / "a.html").read_text()
    assert "recorded (expected.npz)" in page
    assert "Where" not in page  # a recorded reference holds a part of each layer
