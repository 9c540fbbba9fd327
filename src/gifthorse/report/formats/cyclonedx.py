"""Results as a CycloneDX 1.6 bill of materials of models, with each verdict as an attestation."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Sequence
from typing import Any

from gifthorse.report.formats import atlas
from gifthorse.report.formats.issues import OPEN, address, doubts, issues, likely, model_name
from gifthorse.report.json import ScanResult, encoded
from gifthorse.report.words import HEADLINES, NAME_LIMIT, printable

SCHEMA = "http://cyclonedx.org/schema/bom-1.6.schema.json"
OURS = uuid.uuid5(uuid.NAMESPACE_URL, "gifthorse/bom")
ASSESSOR, STANDARD, REQUIREMENT = "gifthorse", "mitre-atlas", "mitre-atlas/AML.M0008"


def write(results: Sequence[ScanResult]) -> str:
    """Return a CycloneDX bill of materials, with verdicts as attestations, in ASCII.

    A model is a component, what was found a vulnerability of it, and the verdict a claim in an
    attestation of MITRE ATLAS' mitigation AML.M0008: with its reasoning, what was not looked for as
    counter-evidence, and the calibrated probability as its confidence.
    """
    refs = [f"model-{n}" for n in range(1, len(results) + 1)]
    pairs = tuple(zip(refs, results, strict=True))
    content = {
        "$schema": SCHEMA,
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {"tools": {"components": [_tool(results)]}},
        "components": [_component(*pair) for pair in pairs],
        "vulnerabilities": [v for pair in pairs for v in _vulnerabilities(*pair)],
        "declarations": _declarations(pairs),
        "definitions": {"standards": [_standard()]},
    }
    number = uuid.uuid5(OURS, encoded(content))
    return encoded({**content, "serialNumber": f"urn:uuid:{number}"})


def _tool(results: Sequence[ScanResult]) -> dict[str, Any]:
    versions = {printable(r.tool.get("version", "")) for r in results} - {""}
    named = {"version": max(versions)} if versions else {}
    return {"type": "application", "name": "gifthorse", **named}


def _component(ref: str, r: ScanResult) -> dict[str, Any]:
    digest = r.target.sha256
    known = len(digest) == 64 and set(digest) <= set("0123456789abcdef")
    return {
        "type": "machine-learning-model",
        "bom-ref": ref,
        "name": model_name(r),
        **({"hashes": [{"alg": "SHA-256", "content": digest}]} if known else {}),
        "modelCard": _card(r),
        "properties": [
            {"name": "gifthorse:path", "value": address(r)},
            {"name": "gifthorse:verdict", "value": r.verdict.label},
            {"name": "gifthorse:format", "value": printable(r.target.format, NAME_LIMIT)},
        ],
    }


def _card(r: ScanResult) -> dict[str, Any]:
    """Return what is known of the net; what the file claims of itself is no part of it."""
    arch, data = printable(r.target.arch, NAME_LIMIT), r.data
    parameters: dict[str, Any] = {"task": "image-classification"}
    if arch:
        parameters["modelArchitecture"] = arch
    if data is None:
        return {"modelParameters": parameters}
    parameters["inputs"] = [{"format": f"image {'x'.join(map(str, data.shape))}"}]
    parameters["outputs"] = [{"format": f"logits of {len(data.per_class)} classes"}]
    rate = data.accuracy
    ends = {"lowerBound": f"{rate.low:.4f}", "upperBound": f"{rate.high:.4f}"}
    metric = {"type": "accuracy on clean images", "value": f"{rate.value:.4f}",
              "confidenceInterval": ends}  # fmt: skip
    return {
        "modelParameters": parameters,
        "quantitativeAnalysis": {"performanceMetrics": [metric] if rate.trials else []},
    }


def _vulnerabilities(ref: str, r: ScanResult) -> Iterator[dict[str, Any]]:
    for issue in issues(r):
        yield {
            "id": issue.rule,
            "source": {"name": "gifthorse"},
            "ratings": [{"severity": issue.severity.lower(), "method": "other"}],
            "description": issue.message,
            "affects": [{"ref": ref}],
            "properties": [
                {"name": "gifthorse:fingerprint", "value": issue.fingerprint(r)},
                *({"name": "mitre:atlas", "value": t} for t in atlas.SIGNS.get(issue.rule, ())),
            ],
        }


def _declarations(pairs: Sequence[tuple[str, ScanResult]]) -> dict[str, Any]:
    return {
        "assessors": [{"bom-ref": ASSESSOR, "thirdParty": True}],
        "claims": [_claim(*pair) for pair in pairs],
        "evidence": [e for pair in pairs for e in _evidence(*pair)],
        "attestations": [_attestation(*pair) for pair in pairs],
    }


def _claim(ref: str, r: ScanResult) -> dict[str, Any]:
    missed = {"counterEvidence": [f"{ref}/not-covered"]} if r.verdict.not_covered else {}
    return {
        "bom-ref": f"{ref}/claim",
        "target": ref,
        "predicate": f"{r.verdict.label}: {HEADLINES[r.verdict.label]}",
        "reasoning": printable(r.verdict.reason),
        "evidence": [f"{ref}/scan"],
        **missed,
    }


def _evidence(ref: str, r: ScanResult) -> Iterator[dict[str, Any]]:
    told = [f"{i.title}: {i.message}" for i in (*issues(r), *doubts(r))]
    methods = ", ".join(f"{printable(d.method)} {d.label}" for d in r.detectors)
    lines = [f"command: {printable(r.run.command)}", f"detectors: {methods or 'none ran'}", *told]
    yield _noted(f"{ref}/scan", "scan", "\n".join(lines))
    if r.verdict.not_covered:
        missed = "\n".join(map(printable, r.verdict.not_covered))
        yield _noted(f"{ref}/not-covered", "not looked for", missed)


def _noted(ref: str, name: str, content: str) -> dict[str, Any]:
    attached = {"attachment": {"contentType": "text/plain", "content": content}}
    return {"bom-ref": ref, "propertyName": name, "data": [{"name": name, "contents": attached}]}


def _attestation(ref: str, r: ScanResult) -> dict[str, Any]:
    """Return the verdict as CycloneDX has it; a model that has none supports no claim."""
    return {
        "summary": f"{model_name(r)}: {r.verdict.label}",
        "assessor": ASSESSOR,
        "map": [{
            "requirement": REQUIREMENT,
            "claims": [] if r.verdict.label in OPEN else [f"{ref}/claim"],
            "conformance": {"rationale": f"{r.verdict.label}: {HEADLINES[r.verdict.label]}"},
            **_sure(r),
        }],
    }  # fmt: skip


def _sure(r: ScanResult) -> dict[str, Any]:
    """Return how sure the claim is: the probability of such a backdoor, or of none."""
    trust = r.verdict.confidence
    if trust is None or not 0 <= trust.value <= 1 or r.verdict.label in OPEN:
        return {}
    found = r.verdict.label in ("BACKDOORED", "SUSPICIOUS")
    score = trust.value if found else 1 - trust.value
    words = f"probability of such a backdoor {likely(r)}, by {printable(trust.calibration, 200)}"
    return {"confidence": {"score": round(score, 4), "rationale": words}}


def _standard() -> dict[str, Any]:
    return {
        "bom-ref": STANDARD,
        "name": "MITRE ATLAS",
        "version": atlas.VERSION,
        "owner": "MITRE",
        "requirements": [
            {"bom-ref": REQUIREMENT, "identifier": "AML.M0008", "text": "Validate AI Model"}
        ],
    }
