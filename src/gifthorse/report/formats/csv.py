"""Results as a CSV table, one row a model."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

from gifthorse.core.text import cell
from gifthorse.report.formats.issues import lead, model_name, names
from gifthorse.report.json import ScanResult
from gifthorse.report.words import NAME_LIMIT, class_name, printable


def write(results: Sequence[ScanResult]) -> str:
    """Return a table with a row a model; no cell of it is one that a spreadsheet computes."""
    out = io.StringIO()
    table = csv.DictWriter(out, _row(None), lineterminator="\n")
    table.writeheader()
    for result in results:
        table.writerow({name: cell(value) for name, value in _row(result).items()})
    return out.getvalue()


def _row(r: ScanResult | None) -> dict[str, object]:
    """Return the cells of a row by column; without a result, the columns."""
    first = lead(r) if r else None
    goal, trust, data = first and first.goal, r and r.verdict.confidence, r and r.data
    accuracy = data.accuracy if data and data.accuracy.trials else None
    return {
        "model": r and model_name(r),
        "sha256": r and printable(r.target.sha256, 64),
        "verdict": r and r.verdict.label,
        "exit_code": r and r.exit_code,
        "class": goal and goal.target,
        "class_name": r and goal and class_name(names(r), goal.target),
        "source_class": goal and goal.source,
        "probability": trust and trust.value,
        "probability_low": trust and trust.low,
        "probability_high": trust and trust.high,
        "rule": first and first.rule,
        "severity": first and first.severity,
        "detector": first and first.detector,
        "network": r and printable(r.target.arch, NAME_LIMIT),
        "classes": data and len(data.per_class),
        "images": data and data.images,
        "accuracy": accuracy and accuracy.value,
        "seconds": r and round(r.run.seconds, 1),
        "started": r and printable(r.run.started, NAME_LIMIT),
        "gifthorse": r and printable(r.tool.get("version", ""), NAME_LIMIT),
        "reason": r and printable(r.verdict.reason),
    }
