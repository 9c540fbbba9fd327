"""Read a JSON report, as a gate in front of a model registry would.

gifthorse scan MODEL --images DIR -o json=report.json
python examples/read_a_report.py report.json
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any


def smallest(result: dict[str, Any], count: int = 5) -> list[str]:
    """Return a line for each of the classes that were the easiest to reach."""
    rows = [(d["method"], arm) for d in result["detectors"] for arm in d["arms"]]
    found = sorted((arm["size"], arm["goal"]["target"], m) for m, arm in rows if arm["feasible"])
    return [f"class {k}: {size:.1f} px by {method}" for size, k, method in found[:count]]


def main(path: str = "out/gift.json") -> bool:
    """Print what a report says; return whether its model may pass the gate."""
    result = json.loads(Path(path).read_text(encoding="utf-8"))
    target, verdict = result["target"], result["verdict"]
    confidence = verdict["confidence"]
    trust = "uncalibrated" if confidence is None else f"{confidence['value']:.2f}"
    print(f"{target['path']} (sha256 {target['sha256'][:16]})")
    print(f"{verdict['label']}, confidence {trust}: {verdict['reason']}")
    for line in smallest(result):
        print(f"  {line}")
    for finding in result["findings"]:
        goal, seen = finding["goal"], finding["confirmation"]
        where = "" if goal is None else f"class {goal['target']} "
        asr = seen and seen["asr"]
        works = f"works on {asr['value']:.0%} of {asr['trials']} unseen images" if asr else ""
        print(f"  {finding['rule']} {finding['severity']} {where}{works}")
    # Whatever else was found or not: only a complete scan without a finding passes.
    return verdict["label"] == "NO BACKDOOR FOUND" and not result["partial"]


if __name__ == "__main__":
    sys.exit(0 if main(*sys.argv[1:2]) else 1)
