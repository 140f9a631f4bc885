"""A verdict as JUnit XML, one test case an endpoint, for CI systems."""

from __future__ import annotations

from xml.etree import ElementTree

from porter.parity.verdict import Verdict


def junit_xml(verdict: Verdict) -> bytes:
    """The whole document, UTF-8."""
    rows = verdict.worst_rows()
    failures = sum(not row.passed for row in rows)
    suite = ElementTree.Element(
        "testsuite",
        name=f"mnv3-port verify {verdict.variant}",
        tests=str(len(rows)),
        failures=str(failures),
        errors="0",
    )
    properties = ElementTree.SubElement(suite, "properties")
    for name, value in {"reference": verdict.reference, "dtype": verdict.dtype, **verdict.environment}.items():
        ElementTree.SubElement(properties, "property", name=name, value=value)
    for row in rows:
        case = ElementTree.SubElement(suite, "testcase", classname=verdict.variant, name=row.endpoint, time="0")
        text = f"max rel {row.max_rel:.3e} (limit {row.tolerance:.0e}) on {row.sample}, worst at {list(row.worst)}"
        if row.passed:
            ElementTree.SubElement(case, "system-out").text = text
        else:
            ElementTree.SubElement(case, "failure", message=text)
    return ElementTree.tostring(suite, encoding="utf-8", xml_declaration=True)
