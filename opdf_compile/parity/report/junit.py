"""Reports as JUnit XML, which CI services show test by test."""

from __future__ import annotations

from collections.abc import Iterable
from xml.etree import ElementTree

from opdf_compile.parity.report.findings import verdict_rows
from opdf_compile.parity.report.parity_result import ParityResult

# What XML 1.0 cannot hold, whatever it is written as.
_CODES = (*range(32), *range(0xD800, 0xE000), 0xFFFE, 0xFFFF)
_FORBIDDEN = {code: "?" for code in _CODES if code not in (9, 10, 13)}
_NOT_ASKED = "not asked"


def as_junit(candidates: Iterable[tuple[str, ParityResult | None, str, float]]) -> str:
    """One suite for each candidate, one test for each part of its verdict.

    A part that is refuted or not checked is a failure; latency that is not decided is skipped,
    unless undecided counts as refuted. A candidate that cannot be used is an error.

    Args:
        candidates: Name, report or None, why there is none, and seconds.
    """
    root = ElementTree.Element("testsuites", name="opdf-compile verify")
    for name, report, error, seconds in candidates:
        suite = ElementTree.SubElement(root, "testsuite", name=_clean(name))
        suite.set("time", f"{seconds:.3f}")
        if report is None:
            case = ElementTree.SubElement(suite, "testcase", classname=_clean(name), name="verify")
            ElementTree.SubElement(case, "error", message=_clean(error))
        else:
            _cases(suite, name, report)
            if error:
                case = ElementTree.SubElement(suite, "testcase", classname=_clean(name))
                case.set("name", "report")
                ElementTree.SubElement(case, "error", message=_clean(error))
        for kind in ("failure", "error", "skipped"):
            count = len(suite.findall(f"testcase/{kind}"))
            suite.set({"failure": "failures", "error": "errors"}.get(kind, kind), str(count))
        suite.set("tests", str(len(suite.findall("testcase"))))
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def _cases(suite: ElementTree.Element, name: str, report: ParityResult) -> None:
    strict = report.environment.get("options", {}).get("on_inconclusive") == "fail"
    for part, verdict, finding in verdict_rows(report):
        if verdict == _NOT_ASKED:
            continue
        case = ElementTree.SubElement(suite, "testcase", classname=_clean(name), name=part)
        if verdict == "pass":
            continue
        kind = "skipped" if verdict == "inconclusive" and not strict else "failure"
        made = ElementTree.SubElement(case, kind, message=_clean(f"{verdict}: {finding}"))
        if part == "structure":
            made.text = _clean("\n".join(map(str, report.structure.differences)))


def _clean(text: str) -> str:
    return text.translate(_FORBIDDEN)
