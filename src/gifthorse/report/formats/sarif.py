"""Results as SARIF 2.1.0: one run, one artifact and one invocation a model."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from gifthorse.core.types import Severity
from gifthorse.report.formats import atlas
from gifthorse.report.formats.issues import Issue, address, doubts, issues
from gifthorse.report.json import ScanResult, encoded
from gifthorse.report.words import RULES, printable

SCHEMA = (
    "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"
)
FINDINGS = tuple(sorted(rule for rule in RULES if not rule.startswith("IN")))
DOUBTS = tuple(sorted(rule for rule in RULES if rule.startswith("IN")))
GRAVE = ("BD008", "BD010", "FS001")  # of those that are no backdoor that was recovered
TAXONOMY = {"name": "MITRE ATLAS", "index": 0}


def write(results: Sequence[ScanResult]) -> str:
    """Return a SARIF log, as code scanning takes it, in ASCII.

    Only what speaks against a model is a result. What kept one from being judged is a notification
    of its invocation, since viewers show no result without a level, and such a thing has none.
    """
    run = {
        "tool": {"driver": _driver(results)},
        "taxonomies": [_taxonomy()],
        "artifacts": [_artifact(r) for r in results],
        "invocations": [_invocation(r) for r in results],
        "results": [_result(r, n, i) for n, r in enumerate(results) for i in issues(r)],
        "columnKind": "unicodeCodePoints",
    }
    return encoded({"$schema": SCHEMA, "version": "2.1.0", "runs": [run]})


def _driver(results: Sequence[ScanResult]) -> dict[str, Any]:
    versions = {printable(r.tool.get("version", "")) for r in results} - {""}
    return {
        "name": "gifthorse",
        **({"version": max(versions)} if versions else {}),
        "shortDescription": {"text": "Looks for backdoors in image classifiers."},
        "rules": [_rule(rule) for rule in FINDINGS],
        "notifications": [{"id": rule, **_called(rule)} for rule in DOUBTS],
        "supportedTaxonomies": [TAXONOMY],
    }


def _called(rule: str) -> dict[str, Any]:
    return {"shortDescription": {"text": f"{RULES[rule][0].upper()}{RULES[rule][1:]}."}}


def _rule(rule: str) -> dict[str, Any]:
    grave = rule.startswith("BD") ^ (rule in GRAVE)
    kinds = [{"target": _taxon(t), "kinds": ["relevant"]} for t in atlas.SIGNS.get(rule, ())]
    return {
        "id": rule,
        **_called(rule),
        "help": {"text": f"gifthorse explain {rule}"},
        "defaultConfiguration": {"level": "error" if grave else "warning"},
        "relationships": kinds,
        "properties": {
            "tags": ["security", "machine-learning"],
            "security-severity": "9.0" if grave else "5.0",
        },
    }


def _taxonomy() -> dict[str, Any]:
    return {
        "name": "MITRE ATLAS",
        "version": atlas.VERSION,
        "organization": "MITRE",
        "informationUri": atlas.ADDRESS,
        "taxa": [
            {"id": id_, "name": name, "helpUri": atlas.page(id_)}
            for id_, name in atlas.TECHNIQUES.items()
        ],
    }


def _taxon(technique: str) -> dict[str, Any]:
    index = list(atlas.TECHNIQUES).index(technique)
    return {"id": technique, "index": index, "toolComponent": TAXONOMY}


def _artifact(r: ScanResult) -> dict[str, Any]:
    trust, digest = r.verdict.confidence, printable(r.target.sha256, 64)
    known = {name: getattr(trust, name) for name in ("value", "low", "high")} if trust else {}
    signer = r.target.signer
    return {
        "location": {"uri": address(r)},
        "roles": ["analysisTarget"],
        **({"description": {"text": _plain(printable(signer.words))}} if signer else {}),
        **({"length": r.target.bytes} if r.target.bytes > 0 else {}),
        **({"hashes": {"sha-256": digest}} if digest else {}),
        "properties": {
            "verdict": r.verdict.label,
            "probability": known,
            **({"signer": printable(signer.key, 64)} if signer else {}),
        },
    }


def _invocation(r: ScanResult) -> dict[str, Any]:
    return {
        "executionSuccessful": r.exit_code in (0, 1),
        "exitCode": r.exit_code,
        **_times(r),
        "commandLine": printable(r.run.command),
        "toolExecutionNotifications": [_notification(r, d) for d in doubts(r)],
    }


def _times(r: ScanResult) -> dict[str, str]:
    """Return when the scan began and ended; nothing if that cannot be read."""
    try:
        began = datetime.fromisoformat(r.run.started)
        ended = began + timedelta(seconds=r.run.seconds if math.isfinite(r.run.seconds) else 0)
        times = [t.isoformat(timespec="seconds").replace("+00:00", "Z") for t in (began, ended)]
    except (ValueError, OverflowError):
        return {}
    return dict(zip(("startTimeUtc", "endTimeUtc"), times, strict=True))


def _notification(r: ScanResult, doubt: Issue) -> dict[str, Any]:
    return {
        "level": doubt.level,
        "message": {"text": _plain(doubt.message)},
        "locations": [{"physicalLocation": {"artifactLocation": {"uri": address(r)}}}],
        **(_descriptor(doubt.rule) if doubt.rule in DOUBTS else {}),
    }


def _descriptor(rule: str) -> dict[str, Any]:
    return {"descriptor": {"id": rule, "index": DOUBTS.index(rule)}}


def _result(r: ScanResult, place: int, issue: Issue) -> dict[str, Any]:
    mark = issue.fingerprint(r)
    known = FINDINGS.index(issue.rule) if issue.rule in FINDINGS else None
    return {
        "ruleId": issue.rule,
        **({} if known is None else {"ruleIndex": known}),
        "kind": "fail",
        "level": issue.level,
        "message": {"text": _plain(issue.message)},
        "locations": [_location(r, place, issue)],
        # What GitHub tells alerts apart by, and the same under a name of our own.
        "partialFingerprints": {"primaryLocationLineHash": f"{mark}:1", "gifthorse/v1": mark},
        "taxa": [_taxon(t) for t in atlas.SIGNS.get(issue.rule, ())],
        "provenance": {"invocationIndex": place},
        **_rank(r, issue.severity),
        "properties": {"verdict": r.verdict.label, "detector": issue.detector},
    }


def _rank(r: ScanResult, severity: Severity) -> Mapping[str, float]:
    trust = r.verdict.confidence
    if trust is None or severity not in ("CRITICAL", "MEDIUM") or not 0 <= trust.value <= 1:
        return {}
    return {"rank": round(100 * trust.value, 1)}


def _location(r: ScanResult, place: int, issue: Issue) -> dict[str, Any]:
    """Return the file; the first line of it, since viewers of code ask for one."""
    where = {"artifactLocation": {"uri": address(r), "index": place}, "region": {"startLine": 1}}
    named = {"kind": "member", "fullyQualifiedName": issue.where}
    return {
        "physicalLocation": where,
        **({"logicalLocations": [named]} if issue.where else {}),
    }


def _plain(text: str) -> str:
    """Return text in which nothing is a placeholder or an embedded link, as section 3.11 asks."""
    safe = text.replace("{", "{{").replace("}", "}}")
    return re.sub(r"[\\\[\]]", r"\\\g<0>", safe) if "](" in safe else safe
