"""What the population shows: which detector sees which family of triggers, and how surely.

    python benchmarks/evidence.py collect --out runs/population   # evidence/records.jsonl
    python benchmarks/evidence.py fuse                            # the shipped calibration
    python benchmarks/evidence.py page                            # docs/evidence.md

Only the tuning half makes what ships. `collect --half judging` writes evidence/judging.jsonl, on
which the page judges it. Records stay where they were measured before: `collect` adds models, and
takes the place of rows of the same name.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gifthorse.core.stats import wilson
from gifthorse.detection.calibrations import dumped, loaded
from gifthorse.detection.fusion import (
    Evidence,
    KnownEvidence,
    area,
    features,
    fuse,
    probability,
    regression,
)
from population import HALVES, read, usable
from setting import machine

ROOT = Path(__file__).parents[1]
RECORDS = {"tuning": ROOT / "evidence/records.jsonl", "judging": ROOT / "evidence/judging.jsonl"}
PAGE = ROOT / "docs/evidence.md"
SHIPPED = ROOT / "src/gifthorse/detection/calibration.json"
DATA_FREE = ("weight_signature", "free_eagle", "mm_bd_quick")
STATISTICS = (*DATA_FREE, "latent_shift")
DETECTORS = (*STATISTICS, "pixel_quick", "blend", "warp")
# What reads several at once: what is run without images, and by the presets.
SETS = {
    "no images": DATA_FREE,
    "standard": (*STATISTICS, "pixel_quick"),
    "thorough": (*STATISTICS, "pixel_quick", "blend", "warp"),
}
# Families of triggers in words, by those of the population.
WORDS = {
    "patch": ("patch", "scattered", "polygon", "trojannn", "imc", "two_targets"),
    "moving patch": ("moving",),
    "blend": ("blend", "sinusoid"),
    "warp": ("warp",),
    "color filter": ("filter",),
    "sample-specific": ("input_aware",),
    "class pair": ("pair",),
    "all-to-all": ("all_to_all",),
}
KIND = {family: word for word, families in WORDS.items() for family in families}
RESAMPLES, FEW = 1000, 5
BINS = (0, 0.1, 0.3, 0.5, 0.7, 0.9, 1.0001)
Floats = NDArray[np.float64]
Record = dict[str, Any]


# Records --------------------------------------------------------------------------------------


def collect(out: Path, half: str) -> None:
    """Write one line a model: what it is, and what each detector said of it."""
    tasks, _, members = read()
    rows = {row["name"]: row for row in kept(half)}
    for m in members:
        if m.half == half and usable(m, tasks[m.task], out) and (said := answers(out, m.name)):
            truth = json.loads((out / f"{m.name}.truth.json").read_text())
            what = ("name", "family", "task", "half", "seed", "options", "planted", "figures")
            rows[m.name] = {k: truth[k] for k in what} | {"machine": machine(), "said": said}
    lines = [json.dumps(rows[name]) for name in sorted(rows)]
    RECORDS[half].write_text("\n".join(lines) + "\n")


def answers(out: Path, name: str) -> dict[str, Record]:
    """Return what the detectors said of a model, if all did."""
    keys = ("label", "score", "target", "asr", "control", "seconds", "image_steps")
    said = {}
    for detector in DETECTORS:
        path = out / f"{name}.{detector}.json"
        if not path.exists():
            return {}
        r = json.loads(path.read_text())
        said[detector] = {k: round(v, 4) if isinstance(v := r[k], float) else v for k in keys}
    return said


def kept(half: str) -> list[Record]:
    """Return the records of a half."""
    path = RECORDS[half]
    lines = path.read_text().splitlines() if path.exists() else []
    return [json.loads(line) for line in lines]


def evidence_of(row: Record) -> dict[str, Evidence]:
    """Return what of a record compares between nets."""
    return {
        name: Evidence(r["score"], r["target"], max(0.0, (r["asr"] or 0) - (r["control"] or 0)))
        for name, r in row["said"].items()
    }


def comparable(rows: Iterable[Record]) -> list[Record]:
    """Return the models that all detectors judge: those with three classes or more."""
    return [row for row in rows if row["task"] != "digits2"]


# Figures --------------------------------------------------------------------------------------


def table(rows: Sequence[Record], names: Sequence[str]) -> tuple[Floats, NDArray[np.bool_]]:
    """Return the features of models, and which are backdoored."""
    x = np.stack([features(evidence_of(row), names) for row in rows])
    return x, np.asarray([bool(row["planted"]) for row in rows])


def without(rows: Sequence[Record], names: Sequence[str], part: Callable[[Record], str]) -> Floats:
    """Return each model's probability by a fit without all models of its part."""
    x, bad = table(rows, names)
    parts = np.asarray([part(row) for row in rows])
    out = np.empty(len(rows))
    for this in sorted(set(parts)):
        rest = parts != this
        line = regression(x[rest & ~bad], x[rest & bad])
        out[~rest] = [probability(line, row) for row in x[~rest]]
    return out


def interval(good: Floats, bad: Floats) -> str:
    """Return the area under the ROC curve with the central 95 % of bootstrap resamples."""
    rng = np.random.default_rng(0)
    drawn = [area(rng.choice(good, len(good)), rng.choice(bad, len(bad))) for _ in range(RESAMPLES)]
    low, high = np.quantile(drawn, [0.025, 0.975])
    return f"{area(good, bad):.2f} [{low:.2f}, {high:.2f}]"


def share(count: int, of: int) -> str:
    """Return a count with its 95 % Wilson interval."""
    low, high = wilson(count, of)
    return f"{count} of {of} [{low:.0%}, {high:.0%}]" if of else "0 of 0"


def entropy(p: Floats, bad: NDArray[np.bool_]) -> float:
    """Return the cross-entropy, both kinds weighing the same."""
    return -float(np.log(p[bad]).mean() + np.log(1 - p[~bad]).mean()) / 2


def leading(row: Record, names: Sequence[str]) -> int | None:
    """Return the class that most detectors lead with; of as many, that of the last."""
    named = [t for n in names if (t := row["said"][n]["target"]) is not None]
    return max(reversed(named), key=named.count, default=None)


def judged(rows: Sequence[Record], p: Floats, names: Sequence[str]) -> list[str]:
    """Return the cells that say how well probabilities tell models apart."""
    bad = np.asarray([bool(row["planted"]) for row in rows])
    hits = [row for row, chance in zip(rows, p, strict=True) if row["planted"] and chance >= 0.5]
    one = [row for row in hits if all("target" in planted for planted in row["planted"])]
    right = sum(leading(row, names) in {q["target"] for q in row["planted"]} for row in one)
    # Beyond a probability of a thousandth the models are too few to say anything.
    safe = np.clip(p, 1e-3, 1 - 1e-3)
    return [
        interval(p[~bad], p[bad]),
        f"{entropy(safe, bad):.3f}",
        f"{np.square(p - bad).mean():.3f}",
        share(int((p[~bad] >= 0.5).sum()), int((~bad).sum())),
        share(len(hits), int(bad.sum())),
        share(right, len(one)),
    ]


# What ships -----------------------------------------------------------------------------------


def ship() -> None:
    """Fit the fusions of the presets on the tuning half; write them beside what ships already."""
    rows = comparable(kept("tuning"))
    models = [
        KnownEvidence(evidence_of(r), KIND[r["family"]] if r["planted"] else None) for r in rows
    ]
    bad = sum(bool(row["planted"]) for row in rows)
    name = f"tuning half of the population: {len(rows) - bad} clean, {bad} backdoored models"
    joint = [fuse(name, SETS[preset], models, classes=(3, 43), sides=(28, 32)) for preset in SETS]
    known, held = loaded(SHIPPED.read_text(), str(SHIPPED)), json.loads(SHIPPED.read_text())
    SHIPPED.write_text(dumped(held["name"], known.detectors, held["made"], joint))


# The page -------------------------------------------------------------------------------------

JUDGED = "AUC | cross-entropy | Brier | false alarms | found | right class of those found"


def page() -> str:
    """Return the page that the records make."""
    tuning, judging = (comparable(kept(half)) for half in HALVES)
    return "\n".join([
        "# What sees which family, and how surely",
        "",
        "Made by `python benchmarks/evidence.py page` from `evidence/records.jsonl` and",
        "`evidence/judging.jsonl`: models of the population of `evidence/population.toml`, trained",
        "by `benchmarks/population.py make` and scanned by `measure` with few clean images. The",
        f"plan has {len(read()[2])} models; {len(tuning)} of the tuning half and {len(judging)} of",
        "the judging half are measured so far. Halves were drawn before any score was seen, and",
        "nothing was chosen on the judging half. Models with two classes are left out here: most",
        "detectors compare a class with others.",
        "",
        f"Machines: {machines([*tuning, *judging])}.",
        "",
        "A model is found, or falsely accused, at a probability of a half or more. Intervals are",
        f"95 %: of {RESAMPLES} bootstrap resamples of the models for the AUC, Wilson's for shares.",
        *on_judging(judging),
        *on_tuning(tuning),
        *by_family(tuning),
        *costs(tuning),
        *reliability(tuning),
        *models(tuning),
    ]) + "\n"  # fmt: skip


def machines(rows: Iterable[Record]) -> str:
    """Return where records were measured, in words."""
    each = {", ".join(f"{k} {v}" for k, v in row["machine"].items()) for row in rows}
    return "; ".join(sorted(each))


def on_judging(rows: Sequence[Record]) -> list[str]:
    """Return how what ships does on the models that nothing was chosen on."""
    known = loaded(SHIPPED.read_text(), str(SHIPPED)).together
    if not rows or not known:
        return []
    lines = [
        "",
        "## The judging half",
        "",
        f"By the shipped calibration ({known[0].name}), as it is.",
        "",
        f"| detectors | {JUDGED} |",
        "|---" * 7 + "|",
    ]
    for fusion in known:
        preset = next(word for word, names in SETS.items() if names == fusion.detectors)
        p = np.asarray([fusion.confidence(evidence_of(row)).value for row in rows])
        lines.append(f"| {preset} | " + " | ".join(judged(rows, p, fusion.detectors)) + " |")
    lines += parts(rows, known[-1].detectors, p, "all detectors of `thorough`")
    return lines


def parts(rows: Sequence[Record], names: Sequence[str], p: Floats, title: str) -> list[str]:
    """Return how probabilities do on the families, nets and data of some models, as a table."""
    tasks = read()[0]
    clean = p[np.asarray([not row["planted"] for row in rows])]
    lines = [
        "",
        f"By family of triggers, task and kind of clean model, {title}:",
        "",
        "| part | models | AUC against all clean | found, or accused |",
        "|---" * 4 + "|",
    ]
    named: dict[str, Callable[[Record], str]] = {
        "family": lambda row: KIND[row["family"]] if row["planted"] else "",
        "task": lambda row: f"{row['task']}: {tasks[row['task']].net}" if row["planted"] else "",
        "clean": lambda row: "" if row["planted"] else f"{row['family']} (clean)",
    }
    for part in named.values():
        for this in sorted({part(row) for row in rows} - {""}):
            mine = np.asarray([part(row) == this for row in rows])
            told = int((p[mine] >= 0.5).sum())
            against = "" if this.endswith("(clean)") else interval(clean, p[mine])
            lines.append(f"| {this} | {mine.sum()} | {against} | {share(told, mine.sum())} |")
    return lines


def on_tuning(rows: Sequence[Record]) -> list[str]:
    """Return how fits do on what they were not fitted on, within the tuning half."""
    tasks = read()[0]
    kinds: Mapping[str, Callable[[Record], str]] = {
        "model": lambda row: str(row["name"]),
        "family": lambda row: str(row["family"]),
        "net": lambda row: tasks[row["task"]].net,
        "data set": lambda row: tasks[row["task"]].data,
    }
    lines = [
        "",
        "## The tuning half",
        "",
        "Each model's probability by a regression that is fitted anew without it, without its",
        "family (or kind of clean model), without all models of its net, or of its data set.",
        "",
        f"| detectors | left out | {JUDGED} |",
        "|---" * 8 + "|",
    ]
    for preset, names in SETS.items():
        for kind, part in kinds.items():
            p = without(rows, names, part)
            lines.append(f"| {preset} | {kind} | " + " | ".join(judged(rows, p, names)) + " |")
    p = without(rows, SETS["thorough"], kinds["model"])
    return lines + parts(rows, SETS["thorough"], p, "each model left out alone, `thorough`")


def by_family(rows: Sequence[Record]) -> list[str]:
    """Return how well each detector's own score tells families from clean models."""
    clean = [row for row in rows if not row["planted"]]
    lines = [
        "",
        "Area under the ROC curve of each detector's own score, a family against all clean models:",
        "",
        "| family | models | " + " | ".join(f"`{name}`" for name in DETECTORS) + " |",
        "|---" * (2 + len(DETECTORS)) + "|",
    ]
    for word in WORDS:
        mine = [row for row in rows if row["planted"] and KIND[row["family"]] == word]
        if len(mine) < FEW:
            continue
        cells = [interval(scores(clean, name), scores(mine, name)) for name in DETECTORS]
        lines.append(f"| {word} | {len(mine)} | " + " | ".join(cells) + " |")
    return lines


def scores(rows: Sequence[Record], name: str) -> Floats:
    """Return the scores of a detector."""
    return np.asarray([row["said"][name]["score"] for row in rows], float)


def costs(rows: Sequence[Record]) -> list[str]:
    """Return what sets of detectors cost, and how much they tell, each model left out."""
    sets = {f"`{name}`": (name,) for name in DETECTORS} | SETS
    lines = [
        "",
        "What it costs to know so much (median over models; each model left out of its fit):",
        "",
        "| detectors | seconds | image-steps | cross-entropy |",
        "|---" * 4 + "|",
    ]
    for word, names in sets.items():
        spent = [
            float(np.median([sum(row["said"][n][key] for n in names) for row in rows]))
            for key in ("seconds", "image_steps")
        ]
        p = np.clip(without(rows, names, lambda row: str(row["name"])), 1e-3, 1 - 1e-3)
        bad = np.asarray([bool(row["planted"]) for row in rows])
        lines.append(f"| {word} | {spent[0]:.1f} | {spent[1]:,.0f} | {entropy(p, bad):.3f} |")
    return lines


def reliability(rows: Sequence[Record]) -> list[str]:
    """Return how often models are backdoored at each probability."""
    p = without(rows, SETS["thorough"], lambda row: str(row["name"]))
    bad = np.asarray([bool(row["planted"]) for row in rows])
    weight = np.where(bad, 0.5 / bad.sum(), 0.5 / (~bad).sum())
    lines = [
        "",
        "Reliability of `thorough`, each model left out, where clean and backdoored models weigh",
        "the same:",
        "",
        "| probability | models | mean probability | share backdoored |",
        "|---" * 4 + "|",
    ]
    for low, high in pairwise(BINS):
        mine = (p >= low) & (p < high)
        if mine.any():
            said, true = (np.average(v[mine], weights=weight[mine]) for v in (p, bad))
            lines.append(
                f"| {low:g} to {min(high, 1):g} | {mine.sum()} | {said:.2f} | {true:.2f} |"
            )
    return lines


def models(rows: Sequence[Record]) -> list[str]:
    """Return what each detector calls each model by itself."""
    names = " | ".join(f"`{name}`" for name in DETECTORS)
    ordered = sorted(rows, key=lambda row: (bool(row["planted"]), row["name"]))
    return [
        "",
        "## Each model",
        "",
        "The class that a detector calls suspicious or worse by itself, with `!` where it is none",
        "that was planted; nothing where it calls none; and the probability by all of them, by a",
        "fit without the model.",
        "",
        f"| model | task | planted | {names} | probability |",
        "|---" * (4 + len(DETECTORS)) + "|",
        *(
            f"| {row['name']} | {row['task']} | {words(row)} | "
            + " | ".join(hit(row, name) for name in DETECTORS)
            + f" | {chance:.2f} |"
            for row, chance in zip(
                ordered,
                without(ordered, SETS["thorough"], lambda row: str(row["name"])),
                strict=True,
            )
        ),
    ]


def hit(row: Record, name: str) -> str:
    """Return what a detector says of a model: the class, `!` if it is not one that was planted."""
    said = row["said"][name]
    if said["label"] not in ("SUSPICIOUS", "BACKDOORED"):
        return ""
    planted = {p.get("target") for p in row["planted"]}
    return f"{said['target']}{'' if said['target'] in planted else '!'}"


def words(row: Record) -> str:
    """Return what was planted in a model, in words."""
    kinds = [
        f"all to {p['map']}"
        if "map" in p
        else str(p["target"])
        if p["source"] is None
        else f"{p['source']} to {p['target']}"
        for p in row["planted"]
    ]
    return " and ".join(kinds) or "nothing"


def main() -> None:
    """Collect the records, fit what ships, or write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["collect", "fuse", "page"])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--half", choices=HALVES, default="tuning")
    a = parser.parse_args()
    if a.what == "collect":
        collect(a.out, a.half)
    elif a.what == "fuse":
        ship()
    else:
        PAGE.write_text(page())


if __name__ == "__main__":
    main()
