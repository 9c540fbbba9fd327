"""A report as JSON: every figure, with small pictures inside."""

from __future__ import annotations

import json
from collections.abc import Mapping

from torch import Tensor

from gifthorse.core import types
from gifthorse.report import schema
from gifthorse.report.facts import Lead, arm_of, array, compared, footprint, leads, scalars
from gifthorse.report.pictures import png
from gifthorse.report.status import exit_code, incomplete

TEXT_LIMIT = 2000  # characters of a file's own claim
CLAIMS_LIMIT = 100  # how many of its claims are kept


def write(report: types.Report) -> str:
    """Return the report as JSON text in ASCII, so that no character acts on a terminal."""
    result = collect(report).model_dump(mode="json")
    return json.dumps(result, indent=2, ensure_ascii=True, allow_nan=False) + "\n"


def collect(report: types.Report) -> schema.Result:
    """Return the report as the model that is serialized."""
    return schema.Result(
        schema_version=schema.SCHEMA_VERSION,
        tool=schema.Tool(name="gifthorse", version=report.run.versions.get("gifthorse", "")),
        run=_run(report.run),
        target=_target(report),
        data=_data(report.intake) if report.intake else None,
        sanity=_sanity(report),
        verdict=_verdict(report),
        findings=[_finding(place, lead) for place, lead in enumerate(leads(report), 1)],
        per_class=[_row(v.method, arm) for v in report.verdicts for arm in v.arms],
        detectors=[_detector(verdict) for verdict in report.verdicts],
        skipped=_skipped(report),
        errors=_errors(report),
        partial=incomplete(report),
        exit_code=exit_code(report),
    )


def _run(run: types.RunRecord) -> schema.RunRecord:
    return schema.RunRecord(
        started=run.started,
        duration_s=run.seconds,
        command=run.command,
        seed=run.seed,
        device=run.device,
        versions=dict(run.versions),
    )


def _target(report: types.Report) -> schema.Target:
    origin, intake = report.origin, report.intake
    return schema.Target(
        path=origin.path,
        sha256=origin.sha256,
        bytes=origin.bytes,
        format=origin.format,
        arch=schema.Architecture(name=origin.arch, how=origin.how),
        tensors=origin.tensors,
        params=origin.params,
        dtypes=list(origin.dtypes),
        notes=list(origin.notes),
        claims=_claims(origin.metadata),
        classes=_classes(intake) if intake else [],
        input=_input(intake) if intake else None,
    )


def _claims(metadata: Mapping[str, str]) -> dict[str, str]:
    kept = list(metadata.items())[:CLAIMS_LIMIT]
    return {key[:TEXT_LIMIT]: value[:TEXT_LIMIT] for key, value in kept}


def _classes(intake: types.Intake) -> list[schema.ClassName]:
    names = dict(enumerate(intake.class_names))
    count = max(len(intake.per_class), len(names))
    return [schema.ClassName(index=k, name=names.get(k)) for k in range(count)]


def _input(intake: types.Intake) -> schema.Input:
    candidates = [
        schema.NormalizationTried(
            normalization=_normalization(row.normalization),
            accuracy=_share(row.accuracy),
            confidence=row.confidence,
            chosen=row.normalization == intake.normalization,
        )
        for row in intake.tried
    ]
    choice = schema.NormalizationChoice(
        used=_normalization(intake.normalization), how=intake.how, candidates=candidates
    )
    return schema.Input(shape=intake.shape, normalize=choice)


def _normalization(n: types.Normalization) -> schema.Normalization:
    return schema.Normalization(
        name=n.name, mean=list(n.mean), std=list(n.std), scale=n.scale, bgr=n.bgr
    )


def _share(rate: types.Rate) -> schema.Share:
    return schema.Share(value=rate.value, interval=(rate.low, rate.high), trials=rate.trials)


def _data(intake: types.Intake) -> schema.Data:
    return schema.Data(
        source=intake.source,
        sha256=intake.sha256,
        images=intake.images,
        per_class=list(intake.per_class),
        labels_from=intake.labels_from,
        notes=list(intake.notes),
    )


def _sanity(report: types.Report) -> schema.Sanity:
    checks = [
        schema.Check(rule=c.rule, severity=c.severity, message=c.message, value=c.score)
        for c in report.checks
    ]
    accuracy = _share(report.intake.accuracy) if report.intake else None
    return schema.Sanity(clean_accuracy=accuracy, checks=checks)


def _verdict(report: types.Report) -> schema.VerdictOnFile:
    c = report.confidence
    return schema.VerdictOnFile(
        label=report.label,
        reason=report.reason,
        confidence=c.value if c else None,
        interval=(c.low, c.high) if c else None,
        calibrated=c is not None,
        calibration_id=c.calibration if c else None,
        not_covered=list(report.not_covered),
        next_steps=list(report.next_steps),
    )


def _finding(place: int, lead: Lead) -> schema.FindingFound:
    finding, goal = lead.finding, lead.finding.goal
    source = goal.source if goal else None
    kind = "model" if goal is None else "all_to_one" if source is None else "pair"
    return schema.FindingFound.model_validate(
        {
            "id": f"F{place}",
            "detector": lead.verdict.method,
            "rule": finding.rule,
            "severity": finding.severity,
            "kind": kind,
            "message": finding.message,
            "target_class": goal.target if goal else None,
            "source_classes": None if source is None else [source],
            "statistic": _statistic(lead),
            "asr": _success(lead),
            "trigger": _trigger(finding),
            "evidence": scalars(finding.evidence),
        }
    )


def _statistic(lead: Lead) -> schema.Statistic:
    c = compared(lead.verdict, lead.finding.goal)
    return schema.Statistic(
        score=lead.finding.score,
        threshold=lead.verdict.threshold,
        size=c.size if c else None,
        median_of_others=c.median if c else None,
        others=c.others if c else 0,
        depth=c.index if c else None,
        size_ratio=c.ratio if c else None,
    )


def _success(lead: Lead) -> schema.Success:
    arm, seen = arm_of(lead.verdict, lead.finding.goal), lead.finding.confirmation
    return schema.Success(
        search=arm.asr if arm else None,
        confirm=_share(seen.asr) if seen else None,
        random_baseline=_share(seen.control) if seen else None,
        no_trigger=_share(seen.drift) if seen else None,
    )


def _trigger(finding: types.Finding) -> schema.TriggerFound | None:
    spot = footprint(finding.evidence)
    if spot is None:
        return None
    pattern, mask = array(finding.evidence, "pattern"), array(finding.evidence, "mask")
    return schema.TriggerFound(
        mask_l1=spot.l1,
        mask_pixels=spot.pixels,
        mask_fraction=spot.share,
        bbox=spot.box,
        place=spot.place,
        image=png(pattern, mask) if pattern is not None else None,
        mask=png(mask) if mask is not None else None,
        packed=_packed(finding),
    )


def _packed(finding: types.Finding) -> str | None:
    """Return the trigger itself as text, None if the detector did not keep it."""
    kept = finding.evidence.get("packed")
    return bytes(kept.tolist()).decode("ascii") if isinstance(kept, Tensor) else None


def _row(detector: str, arm: types.Arm) -> schema.Row:
    return schema.Row(
        detector=detector,
        target=arm.goal.target,
        source=arm.goal.source,
        size=arm.size,
        index=arm.index,
        asr=arm.asr,
        rounds=arm.rounds,
        status="found" if arm.feasible else "infeasible",
    )


def _detector(verdict: types.Verdict) -> schema.DetectorRun:
    return schema.DetectorRun(
        name=verdict.method,
        label=verdict.label,
        score=verdict.score,
        threshold=verdict.threshold,
        seconds=verdict.seconds,
        image_steps=verdict.image_steps,
        statistics=dict(verdict.statistics),
        params=dict(verdict.settings),
    )


def _skipped(report: types.Report) -> list[schema.Skipped]:
    if report.label != "NOT SCANNED":
        return []
    return [schema.Skipped(what=report.origin.path, why=report.reason)]


def _errors(report: types.Report) -> list[schema.Failure]:
    if report.label != "ERROR":
        return []
    code = report.checks[0].rule if report.checks else ""
    return [schema.Failure(code=code, message=report.reason, where=report.origin.path)]
