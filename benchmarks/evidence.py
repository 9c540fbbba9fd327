"""What the population shows: which detector sees which family of triggers, and how surely.

    python benchmarks/evidence.py collect --out runs/population   # evidence/records.jsonl
    python benchmarks/evidence.py page                            # docs/evidence.md

Only the tuning half is read, unless `--half judging` asks for the other, which tunes nothing.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.preprocessing import StandardScaler

from population import HALVES, read, usable
from setting import machine

ROOT = Path(__file__).parents[1]
RECORDS, PAGE = ROOT / "evidence/records.jsonl", ROOT / "docs/evidence.md"
DETECTORS = ("latent_shift", "weight_signature", "pixel_quick", "blend", "warp", "color_filter")
RESAMPLES, FEW = 1000, 5
Floats = NDArray[np.float64]
Record = dict[str, Any]


def collect(out: Path, half: str) -> None:
    """Write one line a model: what it is, and what each detector said of it."""
    tasks, _, members = read()
    lines = []
    for m in members:
        if m.half != half or not usable(m, tasks[m.task], out):
            continue
        truth = json.loads((out / f"{m.name}.truth.json").read_text())
        said = {}
        for name in DETECTORS:
            path = out / f"{m.name}.{name}.json"
            if path.exists():
                r = json.loads(path.read_text())
                keys = ("label", "score", "target", "asr", "control", "seconds", "image_steps")
                said[name] = {k: round(v, 4) if isinstance(v := r[k], float) else v for k in keys}
        if len(said) == len(DETECTORS):
            what = ("name", "family", "task", "half", "seed", "options", "planted", "figures")
            lines.append({k: truth[k] for k in what} | {"said": said})
    head = {"machine": machine(), "half": half, "detectors": list(DETECTORS)}
    rows = [json.dumps(row) for row in (head, *sorted(lines, key=lambda row: str(row["name"])))]
    RECORDS.write_text("\n".join(rows) + "\n")


def area(good: Floats, bad: Floats) -> float:
    """Return the area under the ROC curve of two kinds of scores."""
    truth = np.repeat([0, 1], [len(good), len(bad)])
    return float(roc_auc_score(truth, np.concatenate([good, bad])))


def interval(good: Floats, bad: Floats) -> str:
    """Return that area with the central 95 % of bootstrap resamples of the models."""
    rng = np.random.default_rng(0)
    drawn = [area(rng.choice(good, len(good)), rng.choice(bad, len(bad))) for _ in range(RESAMPLES)]
    low, high = np.quantile(drawn, [0.025, 0.975])
    return f"{area(good, bad):.2f} [{low:.2f}, {high:.2f}]"


def scores(rows: Sequence[Record], name: str) -> Floats:
    """Return the scores of a detector."""
    return np.asarray([row["said"][name]["score"] for row in rows], float)


def hit(row: Record, name: str) -> str:
    """Return what a detector says of a model: the class, `!` if it is not one that was planted."""
    said = row["said"][name]
    if said["label"] not in ("SUSPICIOUS", "BACKDOORED"):
        return ""
    planted = {p.get("target") for p in row["planted"]}
    return f"{said['target']}{'' if said['target'] in planted else '!'}"


def words(row: Record) -> str:
    """Return what was planted in a model, in words."""
    kinds = [f"all to {p.get('map')}" if "map" in p else str(p["target"]) for p in row["planted"]]
    return " and ".join(kinds) or "nothing"


def fused(rows: Sequence[Record], truth: NDArray[np.int64]) -> Floats:
    """Return each model's probability by a logistic regression on all others' scores."""
    x = np.log1p(np.stack([scores(rows, name) for name in DETECTORS], 1))
    out = np.empty(len(rows))
    for i in range(len(rows)):
        rest = np.arange(len(rows)) != i
        scale = StandardScaler().fit(x[rest])
        model = LogisticRegression(C=1.0, class_weight="balanced", max_iter=1000)
        model.fit(scale.transform(x[rest]), truth[rest])
        out[i] = model.predict_proba(scale.transform(x[i : i + 1]))[0, 1]
    return out


def page() -> str:
    """Return the page that the records make."""
    head, *rows = (json.loads(line) for line in RECORDS.read_text().splitlines())
    clean = [row for row in rows if not row["planted"]]
    where = ", ".join(f"{key} {value}" for key, value in head["machine"].items())
    names = " | ".join(f"`{name}`" for name in DETECTORS)
    seconds = (float(np.median([r["said"][n]["seconds"] for r in rows])) for n in DETECTORS)
    text = [
        "# What sees which family",
        "",
        "Made by `python benchmarks/evidence.py page` from `evidence/records.jsonl`: models of the",
        f"population of `evidence/population.toml`, {head['half']} half, trained by",
        "`benchmarks/population.py make` and scanned by `measure` with few clean images.",
        f"So far {len(clean)} clean models, controls among them, and {len(rows) - len(clean)}",
        f"backdoored ones are measured, of {len(read()[2])}, and the judging half is not opened:",
        "the page says which search sees what, not how often a scan is right.",
        "",
        f"Machine: {where}.",
        "",
        "The class that a detector calls suspicious or worse, with `!` where it is none that was",
        "planted; nothing where it calls none.",
        "",
        f"| model | task | planted | {names} |",
        "|---" * (3 + len(DETECTORS)) + "|",
        *(
            f"| {row['name']} | {row['task']} | {words(row)} | "
            + " | ".join(hit(row, name) for name in DETECTORS)
            + " |"
            for row in sorted(rows, key=lambda row: (bool(row["planted"]), row["name"]))
        ),
        "| median seconds | | | " + " | ".join(f"{s:.1f}" for s in seconds) + " |",
    ]
    return "\n".join([*text, *areas(rows, clean, names), *together(rows)]) + "\n"


def areas(rows: Sequence[Record], clean: Sequence[Record], names: str) -> list[str]:
    """Return the areas of families that have enough models, as a table."""
    families = sorted({row["family"] for row in rows if row["planted"]})
    parts = [(f, [row for row in rows if row["family"] == f]) for f in families]
    parts = [(f, mine) for f, mine in parts if len(mine) >= FEW <= len(clean)]
    lines = [
        f"| {family} | {len(mine)} | "
        + " | ".join(interval(scores(clean, n), scores(mine, n)) for n in DETECTORS)
        + " |"
        for family, mine in parts
    ]
    head = [
        "",
        "Area under the ROC curve of each score, a family against all clean models, with the",
        "central 95 % of bootstrap resamples.",
        "",
        f"| family | models | {names} |",
        "|---" * (2 + len(DETECTORS)) + "|",
    ]
    return [*head, *lines] if lines else []


def together(rows: Sequence[Record]) -> list[str]:
    """Return how well all scores do together, if there are enough models of both kinds."""
    truth = np.asarray([bool(row["planted"]) for row in rows], int)
    if min(truth.sum(), len(truth) - truth.sum()) < 2 * FEW:
        return []
    p = fused(rows, truth)
    loss = np.mean([-np.log(p[truth == 1]).mean(), -np.log(1 - p[truth == 0]).mean()])
    return [
        "",
        "All scores together, by a logistic regression that is fitted anew without each model:",
        f"area {interval(p[truth == 0], p[truth == 1])}, cross-entropy {loss:.3f}, where 0.693",
        "knows nothing.",
    ]


def main() -> None:
    """Collect the records, or write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["collect", "page"])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--half", choices=HALVES, default="tuning")
    a = parser.parse_args()
    if a.what == "collect":
        collect(a.out, a.half)
    else:
        PAGE.write_text(page())


if __name__ == "__main__":
    main()
