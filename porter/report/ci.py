"""A verdict for CI systems: JUnit XML, one test case per endpoint, and Markdown for the page of a run."""

from __future__ import annotations

from xml.etree import ElementTree

from porter.parity.compare import Row
from porter.parity.verdict import Verdict
from porter.report.lines import FURTHEST, PRECISIONS, circumstances, counted, reasons
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
    kind = "failure" if failed else "error"
    counts = {"tests": "1", "failures": str(int(failed)), "errors": str(int(not failed))}
    suite = ElementTree.Element("testsuite", {"name": f"mnv3-port {name}", **counts})
    case = ElementTree.SubElement(suite, "testcase", classname="mnv3-port", name=name, time="0")
    ElementTree.SubElement(case, kind, message=printable(message))
    return _document(suite)


def _document(root: ElementTree.Element) -> bytes:
    return ElementTree.tostring(root, encoding="utf-8", xml_declaration=True)


def _suite(verdict: Verdict) -> ElementTree.Element:
    rows = verdict.worst_rows()
    failures = sum(not row.passed for row in rows) + len(verdict.changed)
    suite = ElementTree.Element("testsuite")
    _set(
        suite,
        name=f"mnv3-port verify {verdict.variant}",
        tests=str(len(rows) + len(verdict.changed)),
        failures=str(failures),
        errors="0",
    )
    properties = ElementTree.SubElement(suite, "properties")
    facts = {"dtype": verdict.dtype, **verdict.environment, "verdict": verdict.sentence()}
    for name, value in (*facts.items(), *reasons(verdict), *circumstances(verdict)):
        _set(ElementTree.SubElement(properties, "property"), name=name, value=value)
    for row in rows:
        case = _set(ElementTree.SubElement(suite, "testcase"), classname=verdict.variant, name=row.endpoint, time="0")
        text = f"{_figures(row, PRECISIONS[verdict.precision])} on {row.sample}, worst at {list(row.worst)}"
        if row.passed:
            ElementTree.SubElement(case, "system-out").text = printable(text)
        else:
            _set(ElementTree.SubElement(case, "failure"), message=text)
    for name in verdict.changed:
        case = _set(ElementTree.SubElement(suite, "testcase"), classname=verdict.variant, name=name, time="0")
        of = f" (variable {verdict.variables[name]})" if name in verdict.variables else ""
        _set(ElementTree.SubElement(case, "failure"), message=f"its values are not the checkpoint's{of}")
    return suite


def _set(element: ElementTree.Element, **attributes: str) -> ElementTree.Element:
    """``element`` with these attributes, which come from files; XML has no control characters, not even escaped."""
    for name, value in attributes.items():
        element.set(name, printable(value))
    return element


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
        noises = (None if noise is None else noise.largest for noise in (row.port, row.reference))
        figures = ["-" if value is None else f"{value:.1e}" for value in (row.function, *noises)]
        endpoint, sample = markdown_text(row.endpoint), markdown_text(row.sample)
        cells = [endpoint, *figures, sample, "ok" if row.passed else "**differs**"]
        lines.append(f"| {' | '.join(cells)} |")
    said = (*reasons(verdict), *circumstances(verdict))
    lines += ["", *(f"- {label}: {markdown_text(text)}" for label, text in said)]
    return "\n".join(lines) + "\n\n"


def markdown_error(message: str) -> str:
    """What is written instead where there is no verdict."""
    return f"### Error\n\n{markdown_text(message)}\n\n"
