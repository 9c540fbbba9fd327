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
RESAMPLES = 1000
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


def right(rows: Sequence[Record], name: str) -> str:
    """Return of how many models a detector says more than nothing, and names a planted class."""
    said = [row for row in rows if row["said"][name]["label"] in ("SUSPICIOUS", "BACKDOORED")]
    hits = 0
    for row in said:
        targets = {p.get("target") for p in row["planted"]}
        hits += row["said"][name]["target"] in targets
    return f"{hits}/{len(said)}"


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
    families = sorted({row["family"] for row in rows if row["planted"]})
    text = [
        "# What sees which family",
        "",
        "Made by `python benchmarks/evidence.py page` from `evidence/records.jsonl`: models of the",
        f"population of `evidence/population.toml`, {head['half']} half, trained by",
        "`benchmarks/population.py make` and scanned by `measure` as a stranger's file would be.",
        f"So far {len(clean)} clean models, controls among them, and {len(rows) - len(clean)}",
        f"backdoored ones have been measured ({head['machine']}). The population is not complete,",
        "and the judging half has not been opened: these figures say where to look, not how often",
        "a scan is right.",
        "",
        "Area under the ROC curve of each detector's score, a family against all clean models,",
        "and the central 95 % of bootstrap resamples; below it, on how many models the detector",
        "says more than nothing, and how often it then names a planted class.",
        "",
        "| family | models | " + " | ".join(f"`{name}`" for name in DETECTORS) + " |",
        "|---" * (2 + len(DETECTORS)) + "|",
    ]
    for family in families:
        mine = [row for row in rows if row["family"] == family]
        cells = [
            f"{interval(scores(clean, n), scores(mine, n))}<br>{right(mine, n)}" for n in DETECTORS
        ]
        text.append(f"| {family} | {len(mine)} | " + " | ".join(cells) + " |")
    alarms = [right(clean, name).split("/")[1] for name in DETECTORS]
    text.append(f"| clean: alarms | {len(clean)} | " + " | ".join(alarms) + " |")
    seconds = [np.median([row["said"][n]["seconds"] for row in rows]) for n in DETECTORS]
    text.append("| median seconds | | " + " | ".join(f"{s:.1f}" for s in seconds) + " |")
    truth = np.asarray([bool(row["planted"]) for row in rows], int)
    if min(truth.sum(), len(truth) - truth.sum()) >= 10:
        p = fused(rows, truth)
        loss = [-np.log(p[truth == 1]).mean(), -np.log(1 - p[truth == 0]).mean()]
        text += [
            "",
            "All six scores together, by a logistic regression that is fitted anew without each",
            f"model: area {interval(p[truth == 0], p[truth == 1])}, cross-entropy",
            f"{np.mean(loss):.3f} (0.693 knows nothing).",
        ]
    return "\n".join(text) + "\n"


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
