"""A repair as text and as an HTML page, drawn from its JSON record."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeAlias

from pydantic import BaseModel
from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text
from torch import Tensor

from gifthorse.core.types import Confirmation, Goal, Label, Rate
from gifthorse.report import words
from gifthorse.report.facts import array
from gifthorse.report.html import template
from gifthorse.report.pictures import Whisker, png, whisker
from gifthorse.report.schema import Words

Exhibit: TypeAlias = Mapping[str, Tensor | float]  # what to draw of a trigger
BEARABLE = 0.02  # accuracy that a repair may surely have cost
SHOWN = 8  # stamped images drawn for a trigger
TONES = {"REPAIRED": "plain", "NOT REPAIRED": "error"}  # the others are gray
LAST = "A repair is no proof that no backdoor is left: scan the new file, too."


class Repaired(BaseModel, extra="forbid"):
    """The file that a repair began with."""

    path: Words
    sha256: Words
    arch: Words


class Scan(BaseModel, extra="forbid"):
    """The scan whose triggers were used."""

    path: Words
    label: Label


class Images(BaseModel, extra="forbid"):
    """How many clean images the remedy used, and by how many others it was judged."""

    used: int
    judged: int
    source: Words


class Mirroring(BaseModel, extra="forbid"):
    """Accuracy on clean images as they are and mirrored, and whether the remedy mirrored them."""

    plain: Rate
    mirrored: Rate
    points: float
    harmless: bool


class Accuracy(BaseModel, extra="forbid"):
    """Clean accuracy before and after, and what was lost."""

    before: Rate
    after: Rate
    drop: Rate


class Trial(BaseModel, extra="forbid"):
    """A trigger before and after, beside shuffled ones and none."""

    whose: Literal["true", "recovered"]
    goal: Goal
    before: Confirmation
    after: Confirmation


class Pair(BaseModel, extra="forbid"):
    """How far a class is from a target, in pixels."""

    source: int
    target: int
    before: float
    after: float


class Distances(BaseModel, extra="forbid"):
    """How far classes are from the target, in pixels; `increase` is a mean of ratios, less 1."""

    mean: dict[Literal["before", "after"], float]
    failures: dict[Literal["before", "after"], int]
    increase: float | None
    pairs: list[Pair]


class Repair(BaseModel, extra="forbid"):
    """The JSON record of a repair."""

    repaired: Repaired
    method: Words
    options: dict[Words, Words]
    seed: int
    command: Words
    scan: Scan | None
    images: Images
    class_names: list[Words]
    mirroring: Mirroring | None
    unchanged: bool
    accuracy: Accuracy
    triggers: list[Trial]
    distances: Distances | None
    seconds: float
    versions: dict[Words, Words]


class Writer(Protocol):
    """Puts the record of a repair into one format."""

    def __call__(self, said: Mapping[str, Any], exhibits: Sequence[Exhibit] = (), /) -> str:
        """Return the whole document as text; exhibits belong to the triggers, in order."""
        ...


# What both formats say ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """A figure before and after."""

    name: str
    before: Rate
    after: Rate


def _rows(trial: Trial) -> list[Row]:
    names = (f"{trial.whose} trigger", "  shuffled, same size", "  no trigger")
    shares = zip(_shares(trial.before), _shares(trial.after), strict=True)
    return [Row(name, *pair) for name, pair in zip(names, shares, strict=True)]


def _shares(seen: Confirmation) -> tuple[Rate, Rate, Rate]:
    return seen.asr, seen.control, seen.drift


def _goal(repair: Repair, goal: Goal) -> str:
    target = f"class {_class(repair, goal.target)}"
    return target if goal.source is None else f"{target}, from class {_class(repair, goal.source)}"


def _class(repair: Repair, number: int) -> str:
    names = repair.class_names
    name = words.printable(names[number], words.NAME_LIMIT) if number < len(names) else ""
    return f'{number} "{name}"' if name and name != str(number) else str(number)


def _rate(rate: Rate) -> str:
    return f"{words.percent(rate.value)} {words.interval(rate)}"


def _facts(repair: Repair) -> list[tuple[str, str]]:
    """Return what was done, in words, without what went unsaid."""
    r, i, m, s = repair.repaired, repair.images, repair.mirroring, repair.scan
    digest = f"sha256 {r.sha256[:4]}…{r.sha256[-2:]}" if r.sha256 else ""
    figures = m and f"accuracy {_rate(m.mirrored)} mirrored, {_rate(m.plain)} as they are"
    return [
        ("model", "  ".join(filter(None, (r.path or "in memory", digest)))),
        ("method", f"{repair.method}, {words.span(repair.seconds)}"),
        ("images", f"{i.used:,} for the remedy, {i.judged:,} others to judge by, from {i.source}"),
        ("scan", f"{s.path}: {s.label}" if s else ""),
        ("mirroring", f"{'used' if m.harmless else 'left out'}: {figures}" if m else ""),
    ]


def _apart(repair: Repair) -> str:
    """Return in words how far classes lie from the targets."""
    d = repair.distances
    if d is None:
        return ""
    before, after = words.figure(d.mean["before"]), words.figure(d.mean["after"])
    more = "" if d.increase is None else f", {d.increase:+.0%} over pairs"
    lost = f"; {d.failures['after']} without a trigger" if d.failures["after"] else ""
    pairs = words.plural(len(d.pairs), "pair")
    return f"{before} px before, {after} px after, the mean of {pairs} of classes{more}{lost}"


def _outcome(repair: Repair) -> tuple[str, str]:
    """Return what came of it in a word and in a sentence."""
    works = [t for t in repair.triggers if t.after.asr.low > t.after.drift.high]
    lost = repair.accuracy.drop
    if repair.unchanged:
        return "UNCHANGED", "The remedy found nothing to repair: all weights are as they were."
    if works:
        worst = max(works, key=lambda t: t.after.asr.value)
        share = words.percent(worst.after.asr.value)
        return "NOT REPAIRED", f"The {worst.whose} trigger still works on {share} of the images."
    if lost.low > BEARABLE:
        points = words.percent(lost.value)
        return "DAMAGED", f"The model lost {points} of accuracy, more than a repair may cost."
    if not repair.triggers:
        return "CHANGED", "No trigger is known by which it could be seen whether that helped."
    return "REPAIRED", "No trigger that is known works any more."


# Text ---------------------------------------------------------------------------------------------


def text(said: Mapping[str, Any], exhibits: Sequence[Exhibit] = ()) -> str:
    """Return a repair as plain text of at most 80 columns without escape codes."""
    repair, out = Repair.model_validate(said), io.StringIO()
    plain = Console(
        file=out, width=80, color_system=None, force_terminal=False, legacy_windows=False
    )
    plain.print(Group(*_blocks(repair)))
    return "".join(line.rstrip() + "\n" for line in out.getvalue().splitlines())


def _blocks(repair: Repair) -> Iterable[RenderableType]:
    version = repair.versions.get("gifthorse", "")
    head = f"gifthorse {version} · repair · seed {repair.seed}"
    yield from (Text(words.printable(head)), Text())
    yield from (Padding(_grid(_facts(repair)), (0, 0, 0, 2), expand=False), Text())
    word, sentence = _outcome(repair)
    yield from (Padding(Text(f"{word}. {sentence}"), (0, 0, 0, 2)), Text())
    yield Padding(_table(repair), (0, 0, 0, 2), expand=False)
    lost = f"{_rate(repair.accuracy.drop)}, on {repair.images.judged:,} images it did not use"
    rest = [("lost", f"accuracy {lost}"), ("distances", _apart(repair)), ("next", LAST)]
    yield from (Text(), Padding(_grid(rest), (0, 0, 0, 2), expand=False))


def _grid(rows: Iterable[tuple[str, str]]) -> Table:
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(width=11, no_wrap=True)
    grid.add_column(overflow="fold")
    for name, value in rows:
        if value:
            grid.add_row(Text(name), Text(words.printable(value)))
    return grid


def _table(repair: Repair) -> Table:
    table = Table(box=None, padding=(0, 3, 0, 0), pad_edge=False)
    for heading in ("", "before", "after"):
        table.add_column(heading, overflow="fold", justify="left")
    table.add_row("clean accuracy", _rate(repair.accuracy.before), _rate(repair.accuracy.after))
    for trial in repair.triggers:
        table.add_row()
        table.add_row(Text(f"sent to {_goal(repair, trial.goal)}"))
        for row in _rows(trial):
            table.add_row(row.name, _rate(row.before), _rate(row.after))
    return table


# HTML ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Stamped:
    """A clean image, the same with the trigger, and what both models say of them."""

    before: str
    after: str
    said: tuple[str, str]
    says: tuple[str, str]
    moved: tuple[bool, bool]


@dataclass(frozen=True)
class View:
    """A trigger with everything that the page draws of it."""

    trial: Trial
    goal: str
    rows: tuple[tuple[str, Whisker, Whisker], ...]
    pictures: tuple[tuple[str, str], ...]
    strip: tuple[Stamped, ...]


def html(said: Mapping[str, Any], exhibits: Sequence[Exhibit] = ()) -> str:
    """Return a repair as one self-contained HTML document."""
    repair = Repair.model_validate(said)
    word, sentence = _outcome(repair)
    shown = [*exhibits, *({} for _ in repair.triggers[len(exhibits) :])]
    return template("repair.html").render(
        repair=repair,
        word=word,
        headline=sentence,
        tone=TONES.get(word, "inconclusive"),
        last=LAST,
        facts_of=_facts(repair),
        clean=_both(Row("Clean accuracy", repair.accuracy.before, repair.accuracy.after)),
        lost=_rate(repair.accuracy.drop),
        apart=_apart(repair),
        views=[_view(repair, *pair) for pair in zip(repair.triggers, shown, strict=True)],
        w=words,
    )


def _both(row: Row) -> tuple[str, Whisker, Whisker]:
    name = row.name.strip()
    return name[:1].upper() + name[1:], whisker(name, row.before), whisker(name, row.after)


def _view(repair: Repair, trial: Trial, shown: Exhibit) -> View:
    pattern, mask = array(shown, "pattern"), array(shown, "mask")
    drawn = [("Pattern", png(pattern))] if pattern is not None else []
    drawn += [("Mask", png(mask))] if mask is not None else []
    if pattern is not None and mask is not None and pattern.shape[1:] == mask.shape[1:]:
        drawn.append(("Pattern under the mask", png(pattern, mask)))
    rows = tuple(_both(row) for row in _rows(trial))
    return View(trial, _goal(repair, trial.goal), rows, tuple(drawn), _strip(repair, shown))


def _strip(repair: Repair, shown: Exhibit) -> tuple[Stamped, ...]:
    """Return up to `SHOWN` stamped images; none unless both models were asked about them."""
    names = ("before", "after", "before_label", "after_label")
    parts = [array(shown, name) for name in (*names, *(f"healed_{n}" for n in names[2:]))]
    kept = [part for part in parts if part is not None]
    if len(kept) < len(parts):
        return ()
    before, after, *labels = kept
    told = [[_class(repair, int(k)) for k in row.tolist()[:SHOWN]] for row in labels]
    return tuple(
        Stamped(
            before=png(before[i]),
            after=png(after[i]),
            said=(said, stamped),
            says=(says, healed),
            moved=(said != stamped, says != healed),
        )
        for i, (said, stamped, says, healed) in enumerate(zip(*told, strict=True))
    )


WRITERS: dict[str, Writer] = {"text": text, "html": html}
