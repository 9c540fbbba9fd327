"""What a report means for the exit status of the command."""

from __future__ import annotations

from typing import Literal, TypeAlias

from gifthorse.core.types import Report

FailOn: TypeAlias = Literal["backdoored", "suspicious", "inconclusive"]

_FAILING = {
    "backdoored": ("BACKDOORED",),
    "suspicious": ("BACKDOORED", "SUSPICIOUS"),
    "inconclusive": ("BACKDOORED", "SUSPICIOUS", "INCONCLUSIVE"),
}


def limited(report: Report) -> bool:
    """Return whether a limit was reached (IN003): a scan with more time may say more."""
    findings = (f for verdict in report.verdicts for f in verdict.findings)
    return any(f.rule == "IN003" for f in (*report.checks, *findings))


def incomplete(report: Report) -> bool:
    """Return whether something was left unexamined: no verdict, or a limit reached."""
    return limited(report) or report.label in ("INCONCLUSIVE", "NOT SCANNED", "ERROR")


def exit_code(report: Report, fail_on: FailOn = "suspicious") -> int:
    """Return the exit status that a report asks for.

    Args:
        report: The report of one scan.
        fail_on: The mildest verdict that counts as a finding.

    Returns:
        1 for a finding at or above `fail_on`, 2 for a file that could not be opened or an error, 3
        for a scan without a verdict or cut short, else 0.
    """
    if report.label in _FAILING[fail_on]:
        return 1
    if report.label in ("NOT SCANNED", "ERROR"):
        return 2
    return 3 if incomplete(report) else 0
