"""A verdict for CI systems: JUnit XML, one test case per endpoint, and Markdown for the page of a run."""

from __future__ import annotations

from xml.etree import ElementTree

from porter.parity.compare import Row
from porter.parity.verdict import Verdict
from porter.report.lines import FURTHEST, PRECISIONS, circumstances, counted, figure, reasons
from porter.text import markdown_text, printable


def junit_xml(*verdicts: Verdict) -> bytes:
    """The whole document, UTF-8: a suite, or several in ``testsuites``."""
    suites = [_suite(verdict) for verdict in verdicts]
    if len(suites) == 1:
        return _document(suites[0])
    together = ElementTree.Element("testsuites")
    together.extend(suites)
    return _document(together)


def junit_error(name: str, message: str, failed: bool) -> bytes:
    """A document of one case without a verdict: it ``failed`` by a comparison, or could not be made."""
    suite = _child(None, "testsuite", name=f"mnv3-port {name}", tests=1, failures=int(failed), errors=int(not failed))
    _child(_case(suite, "mnv3-port", name), "failure" if failed else "error", message=message)
    return _document(suite)


def _document(root: ElementTree.Element) -> bytes:
    return ElementTree.tostring(root, encoding="utf-8", xml_declaration=True)


def _suite(verdict: Verdict) -> ElementTree.Element:
    rows = verdict.worst_rows()
    failures = sum(not row.passed for row in rows) + len(verdict.changed)
    count = len(rows) + len(verdict.changed)
    name = f"mnv3-port verify {verdict.variant}"
    suite = _child(None, "testsuite", name=name, tests=count, failures=failures, errors=0)
    properties = _child(suite, "properties")
    facts = {"dtype": verdict.dtype, **verdict.environment, "verdict": verdict.sentence()}
    for name, value in (*facts.items(), *reasons(verdict), *circumstances(verdict)):
        _child(properties, "property", name=name, value=value)
    for row in rows:
        case = _case(suite, verdict.variant, row.endpoint)
        text = f"{_figures(row, PRECISIONS[verdict.precision])} on {row.sample}, worst at {list(row.worst)}"
        if row.passed:
            _child(case, "system-out").text = printable(text)
        else:
            _child(case, "failure", message=text)
    for name in verdict.changed:
        of = f" (variable {verdict.variables[name]})" if name in verdict.variables else ""
        _child(_case(suite, verdict.variant, name), "failure", message=f"its values are not the checkpoint's{of}")
    return suite


def _case(suite: ElementTree.Element, classname: str, name: str) -> ElementTree.Element:
    return _child(suite, "testcase", classname=classname, name=name, time=0)


def _child(parent: ElementTree.Element | None, tag: str, **attributes: object) -> ElementTree.Element:
    """A new element with attributes from files made printable: XML has no control characters, not even escaped."""
    known = {name: printable(str(value)) for name, value in attributes.items()}
    return ElementTree.Element(tag, known) if parent is None else ElementTree.SubElement(parent, tag, known)


def _figures(row: Row, exact: str) -> str:
    said = []
    if row.port_name:
        said.append(f"in the port: {row.port_name}")
    if row.function is not None:
        said.append(f"{exact} {row.function:.3e} (limit {row.function_limit:.0e})")
    if row.port is not None and row.reference is not None and row.allowed is not None:
        said.append(
            f"float32 {row.port.largest:.3e}, the reference's {row.reference.largest:.3e} "
            f"(limit {row.allowed.largest:.0e}); "
            f"rms {row.port.rms:.3e}, {row.reference.rms:.3e} (limit {row.allowed.rms:.0e})"
        )
    return "; ".join(said)


def markdown(verdict: Verdict) -> str:
    """The verdict, a table of the endpoints closest to their limits, and every other line of a summary."""
    lines = [f"### {'Parity' if verdict.passed else 'No parity'}: {markdown_text(verdict.variant)}", ""]
    lines.append(f"{markdown_text(verdict.sentence())}; {counted(verdict)}.")
    lines += ["", f"| endpoint | {PRECISIONS[verdict.precision]} | float32 | reference's | worst on | |"]
    lines.append("|---|---|---|---|---|---|")
    for row in sorted(verdict.worst_rows(), key=lambda row: -row.excess)[:FURTHEST]:
        noises = (noise and noise.largest for noise in (row.port, row.reference))
        figures = [figure(value) for value in (row.function, *noises)]
        endpoint, sample = markdown_text(row.endpoint), markdown_text(row.sample)
        cells = [endpoint, *figures, sample, "ok" if row.passed else "**differs**"]
        lines.append(f"| {' | '.join(cells)} |")
    said = (*reasons(verdict), *circumstances(verdict))
    lines += ["", *(f"- {label}: {markdown_text(text)}" for label, text in said)]
    return "\n".join(lines) + "\n\n"


def markdown_error(message: str) -> str:
    """What is written instead where there is no verdict."""
    return f"### Error\n\n{markdown_text(message)}\n\n"
