"""How long do the two scans of `make demo` take? Prints JSON, without the installation.

python benchmarks/demo.py
"""

from __future__ import annotations

import json
import time
from pathlib import Path

from gifthorse.workflows.opening import Inputs
from gifthorse.workflows.scan import scan
from setting import machine

GIFT = Path(__file__).parents[1] / "examples" / "gift"


def main() -> None:
    """Scan the gift and its twin, one after the other."""
    scans = {}
    for name in ("gift", "twin"):
        started = time.perf_counter()
        report = scan(str(GIFT / f"{name}.safetensors"), Inputs(str(GIFT / "clean.npz")))
        scans[name] = {"seconds": time.perf_counter() - started, "verdict": report.label}
    total = sum(float(s["seconds"]) for s in scans.values())
    print(json.dumps({"machine": machine(), "scans": scans, "seconds": total}, indent=1))


if __name__ == "__main__":
    main()
