"""Compare JSON reports of the same models from two versions: do they agree, and where not?

    gifthorse scan M.safetensors --images clean.npz -o json=before/M.json     # with the one version
    gifthorse scan M.safetensors --images clean.npz -o json=after/M.json      # with the other
    python benchmarks/agreement.py before after

Reads reports of schema 1 and 2. Labels, classes, sizes and scores must be equal; image-steps are
printed less what confirmations are charged in schema 2. Exits with 1 if any differ.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

CONTROLS = 8  # shuffled triggers of a confirmation; beside them the trigger and nothing


def read(path: Path) -> dict[str, Any]:
    """Return what a report says of each detector, whatever its schema."""
    said = json.loads(path.read_text(encoding="utf-8"))
    old = said["schema_version"] == "1"
    rows: dict[str, Any] = {"": said["verdict"]["label"]}
    for one in said["detectors"]:
        name = one["name" if old else "method"]
        arms = said["per_class"] if old else one["arms"]
        mine = [a for a in arms if a.get("detector", name) == name]
        sizes = {}
        for arm in mine:
            goal = arm if old else arm["goal"]
            sizes[goal["target"], goal["source"]] = round(arm["size"], 3)
        found = [f for f in said["findings"] if f["detector"] == name and f["severity"] != "INFO"]
        targets = [f["target_class"] if old else (f["goal"] or {}).get("target") for f in found]
        rows[name] = {
            "label": one["label"],
            "score": round(one["score"], 4),
            "classes": targets,
            "sizes": sizes,
            "steps": one["image_steps"] - (0 if old else charged(said, name)),
        }
    return rows


def charged(said: dict[str, Any], detector: str) -> float:
    """Return the image-steps of a detector's confirmations, from the trials that it names."""
    total = 0.0
    for finding in said["findings"]:
        seen = finding.get("confirmation") if finding["detector"] == detector else None
        if seen is not None:
            unseen = said["data"]["images"] - said["data"]["images"] // 2
            total += unseen * (CONTROLS + 2) / 2 + min(8, seen["asr"]["trials"])
    return total


def compare(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """Return where two reports differ, in words."""
    out = [f"label {before['']} -> {after['']}"] if before[""] != after[""] else []
    for name in sorted((before.keys() | after.keys()) - {""}):
        a, b = before.get(name), after.get(name)
        if a is None or b is None:
            out.append(f"{name} ran in one of them only")
            continue
        out += [
            f"{name}: {k} {a[k]} -> {b[k]}" for k in ("label", "score", "classes") if a[k] != b[k]
        ]
        moved = [k for k in a["sizes"] if a["sizes"][k] != b["sizes"].get(k)]
        if moved:
            out.append(f"{name}: {len(moved)} of {len(a['sizes'])} sizes differ")
        if abs(a["steps"] - b["steps"]) > 1:
            out.append(f"{name}: image-steps {a['steps']:.0f} -> {b['steps']:.0f}")
    return out


def main() -> int:
    """Print a line a model."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    a = parser.parse_args()
    worst = 0
    for path in sorted(a.before.glob("*.json")):
        if not (a.after / path.name).exists():
            print(f"{path.stem:12} no report after")
            worst = 1
            continue
        before, after = read(path), read(a.after / path.name)
        said = compare(before, after)
        worst |= bool(said)
        print(f"{path.stem:12} {before['']:18} {'; '.join(said) or 'agrees'}")
    return worst


if __name__ == "__main__":
    sys.exit(main())
