"""A report as one HTML page: no script, no network, nothing from outside the file."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

import torch
from jinja2 import Environment, StrictUndefined, Template
from markupsafe import Markup, escape
from torch import Tensor

from gifthorse.core.types import Report, Verdict
from gifthorse.report import words
from gifthorse.report.facts import (
    Footprint,
    Lead,
    SizeComparison,
    array,
    compared,
    footprint,
    leads,
    scalars,
)
from gifthorse.report.json import write as written
from gifthorse.report.pictures import (
    HEIGHT,
    WIDTH,
    SizeChart,
    Whisker,
    confirmation_rows,
    gaze,
    heat,
    png,
    size_chart,
    trigger_pictures,
    whisker,
)

EXAMPLES = 8  # stamped images shown for a finding
FINDINGS = 20  # findings drawn; the JSON result holds all
COLORS = 48  # of a picture of where the net looks
CLAIMS = 50  # metadata entries shown


@dataclass(frozen=True)
class StampedImage:
    """One clean image before and after the trigger, as data URIs, and what the net says.

    `looks` are where it looks before and after, and what differs; empty where that is not known.
    """

    before: str
    after: str
    change: str
    before_label: str
    after_label: str
    moved: bool
    looks: tuple[str, ...] = ()


@dataclass(frozen=True)
class FindingView:
    """A finding with everything that the page draws of it."""

    lead: Lead
    title: str
    goal: str
    spot: Footprint | None
    comparison: SizeComparison | None
    pictures: tuple[tuple[str, str], ...]
    strip: tuple[StampedImage, ...]
    looks: str
    rows: tuple[Whisker, ...]


@dataclass(frozen=True)
class KeyFigure:
    """A figure with the words that make it understood."""

    value: str
    text: str


def write(report: Report) -> str:
    """Return the report as one self-contained HTML document."""
    found = leads(report)
    views = tuple(_view(report, lead) for lead in found[:FINDINGS])
    return template("template.html").render(
        report=report,
        headline=words.HEADLINES[report.label],
        families=words.families(report.families),
        tone=report.label.lower().replace(" ", "-"),
        views=views,
        more=max(0, len(found) - FINDINGS),
        tiles=_tiles(report, views),
        charts=_charts(report),
        tried=_tried(report),
        coverage=_coverage(report),
        claims=list(report.origin.metadata.items())[:CLAIMS],
        raw=Markup(escape(written(report))),  # noqa: S704 - escaped, line breaks kept
        w=words,
        plot={"width": WIDTH, "height": HEIGHT},
    )


@cache
def template(page: str) -> Template:
    """Return the compiled template of a page with the look that all pages share.

    Every value it prints is stripped of control characters.

    Args:
        page: Name of a file in this folder.
    """
    environment = Environment(
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_harmless,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["digest"] = _digest
    folder = files("gifthorse.report")
    parts = (folder.joinpath(name).read_text(encoding="utf-8") for name in ("look.html", page))
    return environment.from_string("".join(parts))


def _harmless(value: object) -> object:
    """Strip control characters from plain text; markup made by the template passes."""
    plain = isinstance(value, str) and not isinstance(value, Markup)
    return words.printable(str(value)) if plain else value


def _digest(text: str) -> str:
    """Return the source expression with which a content security policy allows a style sheet."""
    digest = hashlib.sha256(str(text).encode()).digest()
    return "sha256-" + base64.b64encode(digest).decode("ascii")


def _view(report: Report, lead: Lead) -> FindingView:
    finding = lead.finding
    return FindingView(
        lead=lead,
        title=words.RULES.get(finding.rule, ""),
        goal=words.goal_label(words.class_names(report), finding.goal) if finding.goal else "",
        spot=footprint(finding.evidence),
        comparison=compared(lead.verdict, finding.goal),
        pictures=trigger_pictures(finding.evidence),
        strip=_strip(report, finding.evidence),
        looks=_about_looks(scalars(finding.evidence)),
        rows=confirmation_rows(finding.confirmation) if finding.confirmation else (),
    )


def _strip(report: Report, evidence: Mapping[str, Tensor | float]) -> tuple[StampedImage, ...]:
    """Return up to `EXAMPLES` stamped images."""
    before, after = array(evidence, "before"), array(evidence, "after")
    if before is None or after is None or not len(before):
        return ()
    changes = heat(before[:EXAMPLES], after[:EXAMPLES])
    was, is_now = array(evidence, "before_label"), array(evidence, "after_label")
    return tuple(
        StampedImage(
            before=png(before[i]),
            after=png(after[i]),
            change=png(change),
            before_label=_said(report, was, i),
            after_label=_said(report, is_now, i),
            moved=was is not None and is_now is not None and bool(was[i] != is_now[i]),
            looks=_looks(evidence, i),
        )
        for i, change in enumerate(changes)
    )


def _looks(evidence: Mapping[str, Tensor | float], place: int) -> tuple[str, ...]:
    """Return pictures of where the net looks in one image before and after, and what differs."""
    pairs = [(array(evidence, t), array(evidence, f"looks_{t}")) for t in ("before", "after")]
    drawn, seen = [], []
    for pictures, looks in pairs:
        if pictures is None or looks is None or place >= len(looks):
            return ()
        drawn.append(png(gaze(pictures[place], looks[place]), colors=COLORS))
        seen.append(looks[place])
    change = (seen[1] - seen[0]).abs()
    return (*drawn, png(gaze(torch.zeros_like(change)[None], change), colors=COLORS))


def _about_looks(figures: Mapping[str, float]) -> str:
    """Return what the maps and the neurons say, in words; empty without maps."""
    if "attention_shift" not in figures:
        return ""
    apart, chance = (figures[f"neuron_separation{k}"] for k in ("", "_chance"))
    return (
        "Where the last convolutions find evidence for the target (Grad-CAM): the trigger moves "
        f"the maps by {words.percent(figures['attention_shift'])} on average. Of the half of the "
        f"neurons most active without and with it, a share of {words.percent(apart)} is not in "
        f"common (0 % if nothing changes, {words.percent(chance)} for sets drawn at random)."
    )


def _said(report: Report, labels: Tensor | None, place: int) -> str:
    """Return the prediction for one image: number and name."""
    if labels is None:
        return ""
    number = int(labels[place])
    return f"{number} {words.class_name(words.class_names(report), number)}".strip()


def _tiles(report: Report, views: tuple[FindingView, ...]) -> list[KeyFigure]:
    """Return the figures under the verdict: of the gravest finding, or of what was examined."""
    if views and report.label in ("BACKDOORED", "SUSPICIOUS"):
        return _finding_tiles(views[0])
    targets = {arm.goal.target for v in report.verdicts for arm in v.arms}
    tiles = []
    if report.preparation:
        tiles.append(KeyFigure(f"{report.preparation.images:,}", "clean images used"))
        rate = report.preparation.accuracy
        if rate.trials:
            said = f"clean accuracy {words.interval(rate)}"
            tiles.append(KeyFigure(words.percent(rate.value), said))
    if targets:
        tiles.append(KeyFigure(f"{len(targets):,}", "classes examined"))
    if report.verdicts:
        tiles.append(KeyFigure(words.plural(len(report.verdicts), "method"), "of detection run"))
    return tiles


def _finding_tiles(view: FindingView) -> list[KeyFigure]:
    tiles, seen = [], view.lead.finding.confirmation
    if view.spot:
        part = f"of {view.spot.area:,} ({words.percent(view.spot.share)}), {view.spot.place}"
        tiles.append(KeyFigure(words.plural(view.spot.pixels, "pixel"), part))
    if seen:
        unseen = words.plural(seen.asr.trials, "unseen image")
        hit = f"of {unseen} obey the trigger {words.interval(seen.asr)}"
        tiles.append(KeyFigure(words.percent(seen.asr.value), hit))
        tiles.append(
            KeyFigure(words.percent(seen.control.value), "obey a random one of the same size")
        )
    if view.comparison:
        c = view.comparison
        smaller = f"pixels in size; the median of {c.others} others is {words.figure(c.median)}"
        tiles.append(KeyFigure(words.figure(c.size), smaller))
    return tiles


def _coverage(report: Report) -> str:
    """Return one sentence on what was examined."""
    if not report.verdicts:
        return "No detection method was run."
    methods = ", ".join(verdict.method for verdict in report.verdicts)
    targets = {arm.goal.target for v in report.verdicts for arm in v.arms}
    parts = [f"{words.plural(len(report.verdicts), 'method')} ({methods})"]
    if targets:
        parts.append(words.plural(len(targets), "class"))
    if report.preparation:
        parts.append(words.plural(report.preparation.images, "image"))
    return f"Examined: {', '.join(parts)}."


def _charts(report: Report) -> list[tuple[Verdict, SizeChart]]:
    drawn = [(verdict, size_chart(report, verdict)) for verdict in report.verdicts]
    return [(verdict, chart) for verdict, chart in drawn if chart]


def _tried(report: Report) -> list[tuple[str, Whisker, float, bool]]:
    """Return the rows of the normalization table: name, accuracy, top probability, chosen."""
    if not report.preparation:
        return []
    used = report.preparation.normalization
    return [
        (
            row.normalization.name,
            whisker(row.normalization.name, row.accuracy),
            row.confidence,
            row.normalization == used,
        )
        for row in report.preparation.tried
    ]
