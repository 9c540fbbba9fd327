"""A report for a terminal, with color where there is one and plain where there is not."""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Sequence

from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from gifthorse.core.types import Confirmation, Preparation, Report, Tried, Verdict
from gifthorse.report.facts import Lead, SizeComparison, compared, footprint, leads
from gifthorse.report.status import FailOn, exit_code
from gifthorse.report.words import (
    CLAIM_LIMIT,
    HEADLINES,
    NAME_LIMIT,
    RULES,
    certainty,
    class_names,
    effort,
    families,
    figure,
    goal_label,
    interval,
    opened,
    percent,
    plural,
    printable,
    span,
    trust_in,
    volume,
)

LABEL_STYLES = {
    "BACKDOORED": "bold red",
    "SUSPICIOUS": "bold yellow",
    "NO BACKDOOR FOUND": "bold blue",
    "INCONCLUSIVE": "bold magenta",
    "NOT SCANNED": "bold magenta",
    "ERROR": "bold red",
}
_ASCII = str.maketrans({"·": "-", "…": "~", "→": ">"})
_FINDINGS = 5  # shown in full
_CLAIMS = 6  # metadata entries shown


def write(report: Report) -> str:
    """Return the report as plain text of at most 80 columns without escape codes."""
    return in_columns(_whole(report))


def in_columns(*blocks: RenderableType) -> str:
    """Return blocks as plain text of at most 80 columns without escape codes."""
    out = io.StringIO()
    plain = Console(
        file=out, width=80, color_system=None, force_terminal=False, legacy_windows=False
    )
    plain.print(*blocks, sep="\n")
    return "".join(line.rstrip() + "\n" for line in out.getvalue().splitlines())


def render(
    report: Report,
    console: Console,
    *,
    outputs: Sequence[str] = (),
    fail_on: FailOn = "suspicious",
) -> None:
    """Print the report.

    Args:
        report: What to print.
        console: Where to; decides on color and width. Characters that its encoding lacks are
            replaced.
        outputs: Paths of the files that hold more, named on the last line.
        fail_on: The mildest verdict that counts as a finding, for the exit status shown.
    """
    body = _whole(report, outputs, fail_on)
    if console.encoding.lower().startswith("utf"):
        console.print(body)
        return
    with console.capture() as capture:
        console.print(body)
    drawn = capture.get().translate(_ASCII)
    console.file.write(drawn.encode(console.encoding, "replace").decode(console.encoding))


def _whole(report: Report, outputs: Sequence[str] = (), fail_on: FailOn = "suspicious") -> Group:
    return Group(*_blocks(report), _last(report, outputs, exit_code(report, fail_on)))


def _blocks(report: Report) -> Iterable[RenderableType]:
    """Yield the report from the header to the limits, a blank line after each block."""
    yield from (_header(report), Text())
    yield from (_indented(_subject(report), 2), Text())
    if report.verdicts:
        yield from (_indented(_methods(report), 2), Text())
    yield _indented(_verdict_line(report), 2)
    yield _indented(Text(printable(report.reason) or HEADLINES[report.label]), 4)
    if report.families:
        yield from (Text(), _indented(facts_grid([("families", families(report.families))]), 4))
    if report.label in ("INCONCLUSIVE", "NOT SCANNED") and report.preparation:
        yield from (Text(), _indented(_normalizations(report.preparation), 4))
    found = leads(report)
    for lead in found[:_FINDINGS]:
        yield from (Text(), _indented(_lead(report, lead), 4))
    if len(found) > _FINDINGS:
        yield _indented(Text(f"and {plural(len(found) - _FINDINGS, 'more finding')}"), 4)
    yield from _checks(report)
    if report.next_steps:
        steps = [("next" if n == 0 else "", step) for n, step in enumerate(report.next_steps)]
        yield from (Text(), _indented(facts_grid(steps), 4))
    if report.not_covered:
        limits = "; ".join(report.not_covered)
        yield from (Text(), _indented(Text(printable(f"Not looked for: {limits}")), 2))


def _indented(block: RenderableType, columns: int) -> Padding:
    return Padding(block, (0, 0, 0, columns), expand=False)


def _header(report: Report) -> Text:
    run = report.run
    version = f"gifthorse {run.versions.get('gifthorse', '')}".strip()
    parts = [version, "scan", f"device {run.device}", f"seed {run.seed}"]
    return Text(printable(" · ".join(parts)), style="dim")


def facts_grid(rows: Iterable[tuple[str, str]]) -> Table:
    """Return labels and values in two columns, free of control characters; none without a value."""
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(width=11, style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    for label, value in rows:
        if value:
            grid.add_row(Text(printable(label)), Text(printable(value)))
    return grid


def _subject(report: Report) -> Table:
    """Return the lines on the file, the network, the images and the sanity."""
    o, preparation = report.origin, report.preparation
    digest = f"sha256 {o.sha256[:4]}…{o.sha256[-2:]}" if o.sha256 else ""
    size = volume(o.bytes) if o.bytes else ""
    rows = [("model", "  ".join(filter(None, (o.path, size, digest, opened(report)))))]
    found = f"{o.arch} ({o.how})" if o.how else o.arch
    classes = plural(len(preparation.per_class), "class") if preparation else ""
    shape = f"input {'x'.join(map(str, preparation.shape))}" if preparation else ""
    rows.append(("network", " · ".join(filter(None, (found or "unknown", classes, shape)))))
    if preparation:
        rows += _images(preparation)
    rows += [("opened", note) for note in o.notes]
    claims = list(o.metadata.items())[:_CLAIMS]
    said = [f"{printable(k, NAME_LIMIT)}: {printable(v, CLAIM_LIMIT)}" for k, v in claims]
    rows += [("file claims" if n == 0 else "", claim) for n, claim in enumerate(said)]
    return facts_grid(rows)


def _images(preparation: Preparation) -> list[tuple[str, str]]:
    """Return the lines on images and sanity."""
    low, high = min(preparation.per_class, default=0), max(preparation.per_class, default=0)
    each = f"{low} each" if low == high else f"{low} to {high} each"
    labels = "the model itself" if preparation.labels_from == "model" else preparation.labels_from
    classes = plural(sum(n > 0 for n in preparation.per_class), "class")
    images = (
        f"{preparation.images:,} from {preparation.source} ({classes}, {each})"
        f" · labels from {labels}"
    )
    used = f"with normalize={preparation.normalization.name}"
    others = [t for t in preparation.tried if t.normalization != preparation.normalization][:3]
    measured = preparation.accuracy.trials > 0
    rest = ", ".join(
        f"{t.normalization.name} {percent(t.accuracy.value if measured else t.confidence)}"
        for t in others
    )
    sure = [t.confidence for t in preparation.tried if t.normalization == preparation.normalization]
    rate, top = preparation.accuracy, percent(sure[0] if sure else math.nan)
    sanity = f"clean accuracy {percent(rate.value)} {interval(rate)}"
    sanity = sanity if measured else f"no labels, so no accuracy; top probability {top}"
    sanity += f" {used}" + (f"  ({rest})" if rest else "")
    return [("images", images), ("sanity", sanity), *(("", note) for note in preparation.notes)]


def _methods(report: Report) -> Table:
    """Return one line for each detector."""
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    grid.add_column(overflow="fold")
    for v in report.verdicts:
        method, label = Text(printable(v.method)), Text(v.label, style=LABEL_STYLES[v.label])
        grid.add_row(method, label, Text(_scored(v)))
    return grid


def _scored(verdict: Verdict) -> str:
    goals = plural(len(verdict.arms), "goal") + " · " if verdict.arms else ""
    score = f"score {figure(verdict.score)} (suspicious from {figure(verdict.threshold)})"
    index = verdict.statistics.get("anomaly_index")
    known = "" if index is None else f" · anomaly index {figure(index)}"
    return f"{score}{known} · {goals}{effort(verdict)}"


def _verdict_line(report: Report) -> Table:
    """Return the verdict, its goal and how certain it is."""
    first = next(iter(leads(report)), None)
    goal = first.finding.goal if first and report.label in ("BACKDOORED", "SUSPICIOUS") else None
    where = Text(goal_label(class_names(report), goal) if goal else "", style="bold")
    trust = Text(f"{trust_in(report)} {certainty(report)}") if report.verdicts else Text()
    cells = [Text(report.label, style=LABEL_STYLES[report.label]), where, trust]
    cells = [cell for cell in cells if cell]
    grid = Table.grid(padding=(0, 3, 0, 0))
    for place in range(len(cells)):
        grid.add_column(no_wrap=place == 0, overflow="fold")
    grid.add_row(*cells)
    return grid


def _normalizations(preparation: Preparation) -> Table:
    """Return the table of normalizations tried, the chosen one marked."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim", pad_edge=False)
    table.add_column("normalize", no_wrap=True)
    measured = ("clean accuracy",) if preparation.accuracy.trials else ()
    for heading in (*measured, "top probability", ""):
        table.add_column(heading, overflow="fold")
    for row in preparation.tried:
        chosen = row.normalization == preparation.normalization
        table.add_row(*_tried(row), Text("chosen" if chosen else ""))
    return table


def _tried(row: Tried) -> Iterable[Text]:
    """Yield the name, the accuracy if it is known, and the mean top probability."""
    yield Text(printable(row.normalization.name))
    if row.accuracy.trials:
        yield Text(f"{percent(row.accuracy.value)} {interval(row.accuracy)}")
    yield Text(figure(row.confidence))


def _lead(report: Report, lead: Lead) -> RenderableType:
    """Return the lines on one finding."""
    finding = lead.finding
    rule = Text(f"{printable(finding.rule)} {RULES.get(finding.rule, '')}".strip(), style="bold")
    rule.append(f" · severity {finding.severity} · found by {printable(lead.verdict.method)}", "")
    rows = [("goal", goal_label(class_names(report), finding.goal))] if finding.goal else []
    spot = footprint(finding.evidence)
    if spot:
        part = f"{spot.pixels:,} of {spot.area:,} pixels ({percent(spot.share)}), {spot.place}"
        rows.append(("trigger", f"{part}; pictures in the HTML report"))
    if finding.confirmation:
        rows.append(("works on", _works(finding.confirmation)))
    comparison = compared(lead.verdict, finding.goal)
    if comparison:
        rows.append(("compared", _beside(comparison)))
    said = finding.message == report.reason  # it stands above already
    words = [] if said else [Text(printable(finding.message))]
    return Group(rule, *words, facts_grid(rows))


def _works(c: Confirmation) -> str:
    controls = f"a random trigger of the same size: {percent(c.control.value)}"
    unseen = f"{percent(c.asr.value)} of {plural(c.asr.trials, 'unseen image')} {interval(c.asr)}"
    return f"{unseen}; {controls}; no trigger: {percent(c.no_trigger.value)}"


def _beside(c: SizeComparison) -> str:
    sizes = f"size {figure(c.size)} pixels; median of the other {c.others}: {figure(c.median)}"
    return f"{sizes} (depth {figure(c.index)}, size ratio {figure(c.ratio)})"


def _checks(report: Report) -> Iterable[RenderableType]:
    """Yield the findings on sanity and file."""
    if report.checks:
        rows = [(c.rule, f"{c.severity}: {c.message}") for c in report.checks]
        yield from (Text(), _indented(facts_grid(rows), 4))


def _last(report: Report, outputs: Sequence[str], status: int) -> Padding:
    """Return the last line: files, time, exit status."""
    files = [f"report {path}" for path in outputs]
    line = " · ".join([*files, span(report.run.seconds), f"exit {status}"])
    return _indented(Text(printable(line), style="dim"), 2)
