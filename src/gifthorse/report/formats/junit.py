"""Results as JUnit XML: a suite for each model, in it its verdict and each detector."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from xml.etree.ElementTree import Element, SubElement, indent, tostring

from gifthorse.report.formats.issues import OPEN, doubts, issues, likely, model_name
from gifthorse.report.json import ScanResult
from gifthorse.report.words import printable

NO_XML = re.compile("[\ufffe\uffff]")  # what is left after control characters


def write(results: Sequence[ScanResult]) -> str:
    """Return JUnit XML: a finding is a failure, what has no verdict an error, never a pass.

    A model that was not judged must not be green, so nothing is marked as skipped.
    """
    root = Element("testsuites", name="gifthorse")
    for result in results:
        _suite(root, result)
    for kind in ("tests", "failures", "errors"):
        root.set(kind, str(sum(int(suite.get(kind, "0")) for suite in root)))
    indent(root)
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{tostring(root, encoding="unicode")}\n'


def _suite(root: Element, r: ScanResult) -> None:
    suite = SubElement(root, "testsuite", name=_text(model_name(r)), timestamp=_text(_time(r)))
    verdict = _case(suite, r, "verdict", r.run.seconds)
    if r.exit_code:
        kind = "failure" if r.exit_code == 1 else "error"
        _told(verdict, kind, r.verdict.label, r.verdict.reason, _details(r))
    for d in r.detectors:
        case = _case(suite, r, d.method, d.seconds)
        said = next((f.message for f in r.findings if f.detector == d.method), "")
        if d.label in ("BACKDOORED", "SUSPICIOUS"):
            _told(case, "failure", d.label, said, "")
        elif d.label in OPEN:
            _told(case, "error", d.label, said, "")
    suite.set("tests", str(len(suite)))
    suite.set("failures", str(len(suite.findall("testcase/failure"))))
    suite.set("errors", str(len(suite.findall("testcase/error"))))


def _case(suite: Element, r: ScanResult, name: str, seconds: float) -> Element:
    spent = f"{seconds:.1f}" if math.isfinite(seconds) else "0"
    return SubElement(suite, "testcase", classname=_text(model_name(r)), name=_text(name),
                      time=spent)  # fmt: skip


def _told(case: Element, kind: str, label: str, message: str, details: str) -> None:
    SubElement(case, kind, type=label, message=_text(message)).text = _text(details) or None


def _details(r: ScanResult) -> str:
    trust = likely(r)
    lines = [f"{i.title} {i.severity}: {i.message}" for i in (*issues(r), *doubts(r))]
    lines += [f"confidence {trust}"] if trust else []
    return " | ".join([*lines, f"sha256 {r.target.sha256}"])


def _time(r: ScanResult) -> str:
    """Return when the scan began, without the zone that the format has no room for."""
    return r.run.started[:19]


def _text(text: str) -> str:
    return NO_XML.sub("\ufffd", printable(text))
