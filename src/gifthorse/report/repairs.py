"""A repair as text and as an HTML page, drawn from its JSON record."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text
from torch import Tensor

from gifthorse.core.types import Confirmation, Goal, Label, Rate
from gifthorse.report import words
from gifthorse.report.facts import array
from gifthorse.report.html import template
from gifthorse.report.pictures import Whisker, png, trigger_pictures, whisker
from gifthorse.report.text import facts_grid, in_columns

Exhibit: TypeAlias = Mapping[str, Tensor | float]  # what to draw of a trigger
BEARABLE = 0.02  # accuracy that a repair may surely have cost
SHOWN = 8  # stamped images drawn for a trigger
TONES = {"REPAIRED": "plain", "NOT REPAIRED": "error"}  # the others are gray
LAST = "A repair is no proof that no backdoor is left: scan the new file, too."
REFORMED = (
    "A repair is no proof that no backdoor is left, and the model's file is as it was: give it no "
    "images but reformed ones."
)


@dataclass(frozen=True)
class RepairSource:
    """The file that a repair began with."""

    path: str
    sha256: str
    arch: str


@dataclass(frozen=True)
class ScanUsed:
    """The scan whose triggers were used."""

    path: str
    label: Label


@dataclass(frozen=True)
class ImageCounts:
    """How many clean images the remedy used, and by how many others it was judged."""

    used: int
    judged: int
    source: str


@dataclass(frozen=True)
class MirroringUsed:
    """Accuracy on clean images as they are and mirrored, and whether the remedy mirrored them."""

    plain: Rate
    mirrored: Rate
    points: float
    harmless: bool


@dataclass(frozen=True)
class AccuracyChange:
    """Clean accuracy before and after, and what was lost."""

    before: Rate
    after: Rate
    drop: Rate


@dataclass(frozen=True)
class TriggerEffect:
    """A trigger before and after, beside shuffled ones and none.

    Attributes:
        whose: Whether it is the `true` trigger or a `recovered` one.
        goal: What it does.
        before: How often it works on the model as it came, on images that the remedy did not use.
        after: The same on the repaired model, with the same shuffles.
    """

    whose: Literal["true", "recovered"]
    goal: Goal
    before: Confirmation
    after: Confirmation


@dataclass(frozen=True)
class ClassDistance:
    """How far a class is from a target, in pixels."""

    source: int
    target: int
    before: float
    after: float


@dataclass(frozen=True)
class DistanceChange:
    """How far classes are from the target, in pixels; `increase` is a mean of ratios, less 1."""

    mean: Mapping[Literal["before", "after"], float]
    failures: Mapping[Literal["before", "after"], int]
    increase: float | None
    pairs: tuple[ClassDistance, ...]


@dataclass(frozen=True)
class RepairRecord:
    """Everything that is said of a repair; its JSON has the same fields."""

    repaired: RepairSource
    method: str
    options: Mapping[str, str]
    seed: int
    command: str
    scan: ScanUsed | None
    images: ImageCounts
    class_names: tuple[str, ...]
    mirroring: MirroringUsed | None
    unchanged: bool
    reforms: bool
    accuracy: AccuracyChange
    triggers: tuple[TriggerEffect, ...]
    distances: DistanceChange | None
    seconds: float
    versions: Mapping[str, str]


class RepairWriter(Protocol):
    """Puts the record of a repair into one format."""

    def __call__(self, repair: RepairRecord, exhibits: Sequence[Exhibit] = (), /) -> str:
        """Return the whole document as text; exhibits belong to the triggers, in order."""
        ...


# What both formats say ----------------------------------------------------------------------------


@dataclass(frozen=True)
class BeforeAfter:
    """A figure before and after."""

    name: str
    before: Rate
    after: Rate


def _rows(trial: TriggerEffect) -> list[BeforeAfter]:
    names = (f"{trial.whose} trigger", "  shuffled, same size", "  no trigger")
    shares = zip(_shares(trial.before), _shares(trial.after), strict=True)
    return [BeforeAfter(name, *pair) for name, pair in zip(names, shares, strict=True)]


def _shares(seen: Confirmation) -> tuple[Rate, Rate, Rate]:
    return seen.asr, seen.control, seen.no_trigger


def _goal(repair: RepairRecord, goal: Goal) -> str:
    target = f"class {_class(repair, goal.target)}"
    return target if goal.source is None else f"{target}, from class {_class(repair, goal.source)}"


def _class(repair: RepairRecord, number: int) -> str:
    names = repair.class_names
    name = words.printable(names[number], words.NAME_LIMIT) if number < len(names) else ""
    return f'{number} "{name}"' if name and name != str(number) else str(number)


def _rate(rate: Rate) -> str:
    return f"{words.percent(rate.value)} {words.interval(rate)}"


def _facts(repair: RepairRecord) -> list[tuple[str, str]]:
    """Return what was done, in words, without what went unsaid."""
    r, i, m, s = repair.repaired, repair.images, repair.mirroring, repair.scan
    digest = f"sha256 {r.sha256[:4]}…{r.sha256[-2:]}" if r.sha256 else ""
    figures = m and f"accuracy {_rate(m.mirrored)} mirrored, {_rate(m.plain)} as they are"
    return [
        ("model", "  ".join(filter(None, (r.path or "in memory", digest)))),
        ("method", f"{repair.method}, {words.span(repair.seconds)}"),
        ("images", f"{i.used:,} for the remedy, {i.judged:,} others to judge by, from {i.source}"),
        ("scan", f"{s.path}: {s.label}" if s else ""),
        ("weights", _weights(repair)),
        ("mirroring", f"{'used' if m.harmless else 'left out'}: {figures}" if m else ""),
    ]


def _weights(repair: RepairRecord) -> str:
    """Return why there is no new file of weights, if there is none."""
    if not repair.reforms:
        return ""
    how = f"{repair.method} reforms images before the net"
    return f"as they were: {how}, which no file of weights holds"


def _last(repair: RepairRecord) -> str:
    return REFORMED if repair.reforms else LAST


def _apart(repair: RepairRecord) -> str:
    """Return in words how far classes lie from the targets."""
    d = repair.distances
    if d is None:
        return ""
    before, after = words.figure(d.mean["before"]), words.figure(d.mean["after"])
    more = "" if d.increase is None else f", {d.increase:+.0%} over pairs"
    lost = f"; {d.failures['after']} without a trigger" if d.failures["after"] else ""
    pairs = words.plural(len(d.pairs), "pair")
    return f"{before} px before, {after} px after, the mean of {pairs} of classes{more}{lost}"


def _outcome(repair: RepairRecord) -> tuple[str, str]:
    """Return what came of it in a word and in a sentence."""
    works = [t for t in repair.triggers if t.after.asr.low > t.after.no_trigger.high]
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


def text(repair: RepairRecord, exhibits: Sequence[Exhibit] = ()) -> str:
    """Return a repair as plain text of at most 80 columns without escape codes."""
    return in_columns(Group(*_blocks(repair)))


def _blocks(repair: RepairRecord) -> Iterable[RenderableType]:
    version = repair.versions.get("gifthorse", "")
    head = f"gifthorse {version} · repair · seed {repair.seed}"
    yield from (Text(words.printable(head)), Text())
    yield from (Padding(facts_grid(_facts(repair)), (0, 0, 0, 2), expand=False), Text())
    word, sentence = _outcome(repair)
    yield from (Padding(Text(f"{word}. {sentence}"), (0, 0, 0, 2)), Text())
    yield Padding(_table(repair), (0, 0, 0, 2), expand=False)
    drop = f"{_rate(repair.accuracy.drop)} of accuracy, "
    drop += f"on {repair.images.judged:,} images it did not use"
    rest = [("drop", drop), ("distances", _apart(repair)), ("next", _last(repair))]
    yield from (Text(), Padding(facts_grid(rest), (0, 0, 0, 2), expand=False))


def _table(repair: RepairRecord) -> Table:
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
class JudgedImage:
    """A clean image, the same with the trigger, and what both models say of them."""

    before: str
    after: str
    said: tuple[str, str]
    says: tuple[str, str]
    moved: tuple[bool, bool]


@dataclass(frozen=True)
class EffectView:
    """A trigger with everything that the page draws of it."""

    trial: TriggerEffect
    goal: str
    rows: tuple[tuple[str, Whisker, Whisker], ...]
    pictures: tuple[tuple[str, str], ...]
    strip: tuple[JudgedImage, ...]


def html(repair: RepairRecord, exhibits: Sequence[Exhibit] = ()) -> str:
    """Return a repair as one self-contained HTML document."""
    word, sentence = _outcome(repair)
    shown = [*exhibits, *({} for _ in repair.triggers[len(exhibits) :])]
    return template("repair.html").render(
        repair=repair,
        word=word,
        headline=sentence,
        tone=TONES.get(word, "inconclusive"),
        last=_last(repair),
        facts_of=_facts(repair),
        clean=_both(BeforeAfter("Clean accuracy", repair.accuracy.before, repair.accuracy.after)),
        lost=_rate(repair.accuracy.drop),
        apart=_apart(repair),
        views=[_view(repair, *pair) for pair in zip(repair.triggers, shown, strict=True)],
        w=words,
    )


def _both(row: BeforeAfter) -> tuple[str, Whisker, Whisker]:
    name = row.name.strip()
    return name[:1].upper() + name[1:], whisker(name, row.before), whisker(name, row.after)


def _view(repair: RepairRecord, trial: TriggerEffect, shown: Exhibit) -> EffectView:
    rows = tuple(_both(row) for row in _rows(trial))
    return EffectView(
        trial, _goal(repair, trial.goal), rows, trigger_pictures(shown), _strip(repair, shown)
    )


def _strip(repair: RepairRecord, shown: Exhibit) -> tuple[JudgedImage, ...]:
    """Return up to `SHOWN` stamped images; none unless both models were asked about them."""
    names = ("before", "after", "before_label", "after_label")
    parts = [array(shown, name) for name in (*names, *(f"healed_{n}" for n in names[2:]))]
    kept = [part for part in parts if part is not None]
    if len(kept) < len(parts):
        return ()
    before, after, *labels = kept
    told = [[_class(repair, int(k)) for k in row.tolist()[:SHOWN]] for row in labels]
    return tuple(
        JudgedImage(
            before=png(before[i]),
            after=png(after[i]),
            said=(said, stamped),
            says=(says, healed),
            moved=(said != stamped, says != healed),
        )
        for i, (said, stamped, says, healed) in enumerate(zip(*told, strict=True))
    )


WRITERS: dict[str, RepairWriter] = {"text": text, "html": html}
