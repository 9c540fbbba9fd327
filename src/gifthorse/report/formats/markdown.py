"""Results as Markdown, for a comment on a pull request or the summary of a job."""

from __future__ import annotations

import re
from collections.abc import Sequence

from gifthorse.report.formats.issues import doubts, issues, lead, likely, model_name
from gifthorse.report.json import ScanResult
from gifthorse.report.words import HEADLINES, plural, printable

ROWS = 200  # models in the table
DETAILS = 20  # models told of at length
MOST = 60_000  # characters; a comment on GitHub takes 65,536
TELLING = re.compile(r"[\\`*_\[\]|~]")
LINKING = re.compile(r"(@|#|://|www\.|GH-)", re.IGNORECASE)


def write(results: Sequence[ScanResult]) -> str:
    """Return a table of the verdicts and, below it, what speaks against each model.

    Names and messages are shown as they are: no link, no mention, no picture, no markup of theirs.
    """
    grave = [r for r in results if r.exit_code == 1]
    unjudged = [r for r in results if r.exit_code > 1]
    head = f"{plural(len(results), 'model')} scanned"
    head += f", **{plural(len(grave), 'finding')}**" if grave else ", no finding"
    head += f", {len(unjudged)} without a verdict" if unjudged else ""
    lines = ["### gifthorse", "", head, "", "| model | verdict | what | probability |"]
    lines += ["|---|---|---|---|", *map(_row, results[:ROWS])]
    lines += [f"| and {len(results) - ROWS} more | | | |"] if len(results) > ROWS else []
    for result in [*grave, *unjudged][:DETAILS]:
        lines += _details(result)
    lines += ["", "<sub>Nothing found is no proof of absence: a scan looks for some kinds of "
              "backdoor only, and names what it did not look for.</sub>"]  # fmt: skip
    return _cut(lines)


def _row(r: ScanResult) -> str:
    first = lead(r)
    what = _prose(first.where or first.title) if first else ""
    label = f"**{r.verdict.label}**" if r.exit_code else r.verdict.label
    name = _code(model_name(r)).replace("|", r"\|")  # of a table's cell, even within code
    return f"| {name} | {label} | {what} | {_prose(likely(r))} |"


def _details(r: ScanResult) -> list[str]:
    lines = ["", f"<details><summary>{r.verdict.label}</summary>", "", _code(model_name(r)), ""]
    lines += [f"{HEADLINES[r.verdict.label]} {_prose(printable(r.verdict.reason))}", ""]
    lines += [f"- **{_prose(i.title)}** ({i.severity.lower()}): {_prose(i.message)}"
              for i in (*issues(r), *doubts(r))]  # fmt: skip
    lines += [f"- sha256 {_code(printable(r.target.sha256, 64))}"] if r.target.sha256 else []
    lines += [f"- next: {_code(printable(step))}" for step in r.verdict.next_steps[:3]]
    missed = "; ".join(r.verdict.not_covered)
    lines += [f"- not looked for: {_prose(printable(missed, 600))}"] if missed else []
    return [*lines, "", "</details>"]


def _cut(lines: Sequence[str]) -> str:
    """Return as many whole lines as a comment takes."""
    text = "\n".join(lines) + "\n"
    if len(text) <= MOST:
        return text
    kept = text[:MOST].rpartition("\n<details>")[0]
    return f"{kept}\n\nMore than a comment takes: see the other reports.\n"


def _code(text: str) -> str:
    """Return text as a code span, in which nothing is markup."""
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", text)), default=0))
    pad = " " if text[:1] in ("`", " ") or text[-1:] in ("`", " ") else ""
    return f"{fence}{pad}{text}{pad}{fence}"


def _prose(text: str) -> str:
    """Return text in which nothing is markup, a link or a mention."""
    safe = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    safe = TELLING.sub(r"\\\g<0>", safe)
    return LINKING.sub(lambda found: f"{found[0][0]}<!-- -->{found[0][1:]}", safe)
