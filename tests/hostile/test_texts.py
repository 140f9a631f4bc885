"""Names and texts from outside in every form of output: none forges a line, moves a cursor or breaks a document."""

import ast
import csv
import html
import io
import json
import os
import re
import shutil
from pathlib import Path
from xml.etree import ElementTree

import pytest
import yaml
from markdown_it import MarkdownIt

from porter.evaluation.result import Scores
from porter.parity.compare import Row
from porter.parity.evidence import Evidence
from porter.parity.references.reference import Noise
from porter.parity.verdict import Cause, Verdict
from porter.report.ci import junit_xml, markdown
from porter.report.evaluation import per_class_csv
from porter.report.html import parity_html
from porter.report.verdict_table import print_verdict
from porter.text import csv_text, printable, yaml_text

ROOT = Path(__file__).parents[2]
EVIL = '\x1b[2J\x07\u202e\udc80 [/bold] [red]y <b> & "quoted" \\\\n'
# Whose results are safe to print
SAFE = {"printable", "shortened", "json_text", "yaml", "_text", "for_command"}


def calls(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "echo":
            yield node


def test_commands_print_through_one_function():
    """click.echo gets a constant or what an escaping function gives; all else goes through echo_lines."""
    found = 0
    for path in sorted((ROOT / "porter" / "commands").glob("*.py")):
        for call in calls(ast.parse(path.read_text())):
            found += 1
            names = {
                getattr(node.func, "attr", None) or getattr(node.func, "id", None)
                for node in ast.walk(call.args[0])
                if isinstance(node, ast.Call)
            }
            inner = [n.value for n in ast.walk(call.args[0]) if isinstance(n, ast.FormattedValue)]
            counted = bool(inner) and all(
                isinstance(value, ast.Call) and getattr(value.func, "id", "") in {"len", *SAFE} for value in inner
            )
            mapped = any(isinstance(n, ast.Name) and n.id in SAFE for n in ast.walk(call.args[0]))
            assert names & SAFE or counted or mapped, f"{path.name}:{call.lineno}"
    assert found > 5


@pytest.mark.parametrize("text", [EVIL, "a\nvariant: evil", "\x00", "\x85\u2028", "plain/name", "# comment", "\ud800"])
def test_yaml(text):
    [found] = yaml.safe_load(f"- {yaml_text(text)}  # comment")
    if "\ud800" not in text and "\udc80" not in text:
        assert found == text
    assert yaml_text(text).isprintable()


def test_csv():
    for formula in ("=cmd()", "+1", "-1", "@x", "\x1b=1"):
        [[cell]] = csv.reader(io.StringIO(csv_text(formula)))
        assert cell.isprintable()
        assert cell[0] not in "=+-@"
    scores = Scores("a", 1, {"IoU": 1.0}, "IoU", {0: 1.0}, {0: "=cmd()\x1b"}, [])
    assert b"\n0,'=cmd()\\x1b,1.0\n" in per_class_csv(scores)


def html_texts(page):
    """The text of each cell, list item and paragraph."""
    inner = re.findall(r"<(dt|dd|li|p|h1|h3)\b[^>]*>(.*?)</\1>", page, re.DOTALL)
    return [html.unescape(re.sub("<[^>]*>", "", text)).strip() for _, text in inner]


def test_every_report_has_every_line(capsys):
    """A terminal, HTML, Markdown and JUnit say the same of a verdict, whatever its names hold."""
    row = Row(
        EVIL, EVIL, (1, 2, 2, 3), 1.0, 0.5, 1e-12, Noise(0.1, 0.2), Noise(0.1, 0.2), Noise(1, 1), (0, 1, 1, 2), EVIL
    )
    verdict = Verdict(
        variant=EVIL,
        checkpoint=EVIL,
        artifact=EVIL,
        reference=EVIL,
        dtype="both",
        environment={"x": EVIL},
        digests={},
        rows=[row],
        images=3,
        top1_agree=2,
        top5_agree=1,
        missing=[EVIL],
        unmatched=[EVIL],
        changed=[EVIL],
        variables={EVIL: EVIL},
        causes=[Cause((EVIL,)), Cause(("BGR",), 1.0, 1e-15)],
        received=f"reference: {EVIL}",
        remarks=[EVIL],
        untried=EVIL,
        assumed=[EVIL],
    )
    name = printable(EVIL)
    lines = [
        ("first", f"{name} = {name} on {name}, worst at index [0, 1, 1, 2] (N, H, W, C)"),
        ("cause", name),
        ("cause", "BGR: with it, the logits' difference is 1.0e-15, without 1.0e+00"),
        ("not tried", f"{name}: --diagnose all"),
        ("assumed", f"{name}: neither side states them"),
        ("reference", name),
        ("received", f"reference: {name}"),
        ("not in it", name),
        ("not matched", name),
        ("changed", f"{name} ({name})"),
        ("remark", name),
        ("agreement", "top-1 2/3, top-5 1/3"),
    ]
    print_verdict(verdict)
    terminal = capsys.readouterr().out
    assert terminal.isascii()
    assert [line for line in terminal.splitlines() if line in {f"{label:<10} {text}" for label, text in lines}] == [
        f"{label:<10} {text}" for label, text in lines
    ]
    page = html_texts(parity_html(verdict, Evidence()).decode())
    assert page[3 : 3 + 2 * len(lines)] == [text for line in lines for text in line]
    listed = html_texts(MarkdownIt().enable("table").render(markdown(verdict)))
    assert listed[-len(lines) :] == [f"{label}: {text}" for label, text in lines]
    document = ElementTree.fromstring(junit_xml(verdict))
    properties = [(found.get("name"), found.get("value")) for found in document.iter("property")]
    assert properties[-len(lines) :] == lines
    assert [case.get("name") for case in document.iter("testcase")] == [name, name]


def test_draft(run, tmp_path):
    import numpy as np

    from porter.parity.demo import demo_variables
    from porter.sources.bundle_writer import write_bundle

    variables = demo_variables("small_075")
    variables["more\nvariant: evil\x1b[2J"] = np.zeros(3, np.float32)
    variables["Net\nvariant: evil"] = variables.pop("MobilenetV3/Conv/weights")
    write_bundle(tmp_path / "model-1", variables)
    ran = run("draft", tmp_path / "model-1", "--to", "small_075")
    assert ran.code == 0
    assert "\x1b" not in ran.out
    document = yaml.safe_load(ran.out)
    assert "variant" not in document
    assert "more\nvariant: evil\x1b[[]2J" in [one["pattern"] for one in document["ignore"]]


@pytest.mark.parametrize(
    "name", ["a\x1b[2Jb", "a\nok        forged", "[/bold]x", pytest.param("[red]y", marks=pytest.mark.slow)]
)
def test_names_of_folders(run, demo_folder, tmp_path, name):
    """They come back in lines of output as they are, but for what a terminal would obey."""
    from PIL import Image

    folder = tmp_path / name
    (folder / "i").mkdir(parents=True)
    source = shutil.copytree(demo_folder, folder / "source")
    Image.new("RGB", (64, 64)).save(folder / "i" / "n01440764.png")
    for command in (
        ["convert", source, "-o", folder / "a.pth"],
        ["evaluate", source, folder / "i", "--workers", "0"],
        ["export-tf", folder / "a.pth", folder / "tf"],
        ["draft", source, "--to", "small_075", "-o", folder / "m.yaml"],
        ["verify", source, folder / "a.pth", "--reference", source / "expected.npz"],
    ):
        ran = run(*command)
        assert ran.code == 0, ran.err
        assert "\x1b" not in ran.out
        assert not any(line.startswith("ok        forged") for line in ran.out.splitlines())
        if command[0] in ("convert", "evaluate"):
            assert printable(name) in ran.out


def test_file_names_that_are_not_utf_8(run, demo_folder, tmp_path):
    from PIL import Image

    name = os.fsdecode(b"x\xff\xfey")
    source = shutil.copytree(demo_folder, tmp_path / name)
    (tmp_path / "i").mkdir()
    Image.new("RGB", (64, 64)).save(tmp_path / "i" / (name + "n01440764.png"))
    reference = source / "expected.npz"
    for command in (
        [
            "evaluate",
            source,
            tmp_path / "i",
            "--workers",
            "0",
            "--html",
            tmp_path / "e.html",
            "--resume",
            tmp_path / "j",
        ],
        ["evaluate", source, tmp_path / "i", "--workers", "0", "--json"],
        ["verify", source, "--reference", reference, "--html", tmp_path / "v.html", "--junit", tmp_path / "v.xml"],
        ["release", source, "--out", tmp_path / "r", "--reference", reference],
        ["release", "--check", tmp_path / "r"],
    ):
        ran = run(*command)
        assert ran.code == 0, ran.err
    assert json.loads((tmp_path / "r" / "parity.json").read_text())["checkpoint"].isprintable()
    ElementTree.parse(tmp_path / "v.xml")
    assert "x\\udcff\\udcfey" in (tmp_path / "v.html").read_text("utf-8")
