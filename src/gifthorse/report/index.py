"""Results of many scans as a folder of pages: a table of models, and a page for each of them."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup

from gifthorse.core.errors import Unwritable
from gifthorse.core.types import Label
from gifthorse.report import words
from gifthorse.report.formats.issues import Issue, doubts, issues, lead, likely, model_name
from gifthorse.report.json import ScanResult
from gifthorse.report.site import embedded, look, page, part, write_page

OURS = "gifthorse.report"
PAGES = ("index.html", "look.css", "results.js")  # beside those of models
ORDER: tuple[Label, ...] = (
    "BACKDOORED", "SUSPICIOUS", "ERROR", "NOT SCANNED", "INCONCLUSIVE", "NO BACKDOOR FOUND",
)  # fmt: skip
WIDTH, HEIGHT = 720, 150  # of the chart of a model's scans


@dataclass(frozen=True)
class ModelScan:
    """One scan of a model, as its page shows it.

    Attributes:
        result: What was written of it.
        source: The file that it was read from.
        facts: What a comparison of two scans lists, in words.
    """

    result: ScanResult
    source: str
    facts: Mapping[str, str]

    @property
    def label(self) -> Label:
        """The verdict."""
        return self.result.verdict.label

    @property
    def tone(self) -> str:
        """The class of the page's style that the verdict has."""
        return self.label.lower().replace(" ", "-")

    @property
    def likely(self) -> str:
        """The probability in words."""
        return likely(self.result)

    @property
    def probability(self) -> float | None:
        """The probability, None if it is uncalibrated."""
        trust = self.result.verdict.confidence
        known = trust is not None and math.isfinite(trust.value)
        return trust.value if known and trust else None

    @property
    def lead(self) -> Issue | None:
        """The gravest thing that is to be told."""
        return lead(self.result)

    @property
    def told(self) -> tuple[Issue, ...]:
        """Everything that is to be told."""
        return (*issues(self.result), *doubts(self.result))

    @property
    def date(self) -> str:
        """When it began, to the minute."""
        return words.printable(self.result.run.started)[:16].replace("T", " ")


@dataclass(frozen=True)
class ModelHistory:
    """All scans of one model, which is one path; the latest comes last."""

    name: str
    key: str
    scans: tuple[ModelScan, ...]

    @property
    def last(self) -> ModelScan:
        """The latest scan."""
        return self.scans[-1]

    @property
    def before(self) -> str:
        """The verdict of the scan before, if it was another one; else empty."""
        other = self.scans[-2].label if len(self.scans) > 1 else self.last.label
        return other if other != self.last.label else ""


@dataclass(frozen=True)
class ScanMark:
    """A scan in the chart of a model: where it lies, what it is."""

    x: float
    y: float | None
    low: float
    high: float
    scan: ModelScan


def write_index(
    results: Iterable[tuple[Path, ScanResult]], folder: Path, name: str, command: str = ""
) -> list[Path]:
    """Write `index.html`, its style and script, and `model/KEY.html` for each model.

    Results are not trusted: what they say is shown as text. Files that are there with the same
    content are left alone.

    Args:
        results: Results with the files that they were read from.
        folder: Where to write; made if it is not there.
        name: Heading of the first page.
        command: What made the pages, shown in their foot.

    Returns:
        Every file, the first page first.

    Raises:
        Unwritable: If the folder cannot be written to.
    """
    models, name = histories(results), words.printable(name, 200)
    try:
        (folder / "model").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Unwritable(f"cannot write to {folder}: {error.strerror}") from error
    return [
        write_page(folder / PAGES[0], _first(models, name, words.printable(command))),
        write_page(folder / PAGES[1], look()),
        write_page(folder / PAGES[2], part(OURS, "results.js")),
        *(write_page(folder / "model" / f"{m.key}.html", _model(m, name)) for m in models),
    ]


def histories(results: Iterable[tuple[Path, ScanResult]]) -> tuple[ModelHistory, ...]:
    """Return the scans of each model, the gravest model first."""
    found: dict[str, list[ModelScan]] = {}
    for path, result in results:
        scan = ModelScan(result, words.printable(str(path), 300), _facts(result))
        found.setdefault(result.target.path, []).append(scan)
    made = [
        ModelHistory(
            model_name(scans[0].result),
            hashlib.sha256(path.encode("utf-8", "replace")).hexdigest()[:16],
            tuple(sorted(scans, key=lambda s: s.result.run.started)),
        )
        for path, scans in found.items()
    ]
    return tuple(sorted(made, key=lambda m: (ORDER.index(m.last.label), m.name)))


def _facts(r: ScanResult) -> dict[str, str]:
    """Return what is compared of two scans, in words and without control characters."""
    first, data, run = lead(r), r.data, r.run
    rate = data.accuracy if data and data.accuracy.trials else None
    size = r.findings[0].trigger.footprint.pixels if r.findings and r.findings[0].trigger else None
    told = {
        "verdict": r.verdict.label,
        "probability": likely(r),
        "what": (first.where or first.title) if first else "",
        "trigger": words.plural(size, "pixel") if size else "",
        "reason": r.verdict.reason,
        **{f"detector {d.method}": f"{d.label}, score {words.figure(d.score)} (suspicious from "
           f"{words.figure(d.threshold)})" for d in r.detectors},
        "sha256": r.target.sha256,
        "size": words.volume(r.target.bytes) if r.target.bytes else "",
        "network": r.target.arch,
        "images": f"{data.images:,} from {data.source}" if data else "",
        "normalization": data.normalization.name if data else "",
        "clean accuracy": words.percent(rate.value) if rate else "",
        "not looked for": "; ".join(r.verdict.not_covered),
        "command": run.command,
        "seed": str(run.seed),
        "device": run.device,
        "seconds": words.span(run.seconds) if math.isfinite(run.seconds) else "",
        **{f"version of {name}": version for name, version in sorted(run.versions.items())},
    }  # fmt: skip
    return {words.printable(k, 80): words.printable(v, 1000) for k, v in told.items() if v}


def _first(models: Sequence[ModelHistory], name: str, command: str) -> str:
    counts = Counter(m.last.label for m in models)
    rules = Counter((i.rule, i.title) for m in models for i in m.last.told if i.rule)
    return page(
        OURS,
        "results.html.j2",
        name=name,
        models=models,
        scans=sum(len(m.scans) for m in models),
        counts=[(label, counts[label], label.lower().replace(" ", "-")) for label in ORDER],
        rules=[(title, count) for (_, title), count in sorted(rules.items())],
        command=command,
    )


def _model(model: ModelHistory, name: str) -> str:
    scans = [{"name": f"{n}: {s.date}", "facts": dict(s.facts)}
             for n, s in enumerate(model.scans, 1)]  # fmt: skip
    return page(
        OURS,
        "model.html.j2",
        name=name,
        model=model,
        last=model.last,
        marks=marks(model.scans),
        headline=words.HEADLINES[model.last.label],
        reason=words.printable(model.last.result.verdict.reason),
        plot={"width": WIDTH, "height": HEIGHT},
        data=Markup(embedded(scans)),  # noqa: S704 - every "<" is escaped in it
    )


def marks(scans: Sequence[ModelScan]) -> list[ScanMark]:
    """Return where scans lie in the chart, from the first to the last at even distances."""
    step = WIDTH / max(1, len(scans) - 1)
    return [_mark(n * step if len(scans) > 1 else WIDTH / 2, scan) for n, scan in enumerate(scans)]


def _mark(x: float, scan: ModelScan) -> ScanMark:
    def up(share: float) -> float:
        return HEIGHT * (1 - min(1.0, max(0.0, share))) if math.isfinite(share) else HEIGHT

    trust = scan.result.verdict.confidence
    if scan.probability is None or trust is None:
        return ScanMark(x, None, HEIGHT, HEIGHT, scan)
    return ScanMark(x, up(scan.probability), up(trust.low), up(trust.high), scan)
