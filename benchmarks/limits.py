r"""By how much a scan overruns its time limit, over nets of all sizes, and what memory it takes.

Each net has random weights (the cost does not depend on them) and is written to a file; the scan
is a process of its own, as a user would start it. One JSON line a net, so that a run goes on where
it stopped.

    python benchmarks/limits.py --limit 60 --images imagenette:test --out runs/limits.jsonl
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from safetensors.torch import save_file

from gifthorse.models.architectures import build
from setting import machine

# Name, classes, side: what a laptop meets, from the smallest to the largest.
NETS = (
    ("resnet20", 10, 32),
    ("wrn28_10", 10, 32),
    ("vgg16_bn_cifar", 10, 32),
    ("resnet18", 10, 224),
    ("resnet50", 10, 224),
    ("densenet121", 10, 224),
    ("vgg16_bn", 10, 224),
    ("efficientnet_b0", 10, 224),
    ("efficientnet_b0", 1000, 224),
    ("vit_tiny_patch16_224", 10, 224),
    ("vit_base_patch16_224", 10, 224),
    ("vit_base_patch16_224", 1000, 224),
)


def measured(name: str, classes: int, side: int, images: str, limit: float) -> dict[str, object]:
    """Scan a net with random weights; return its seconds, memory and exit status."""
    torch.manual_seed(0)
    net = build(name, classes, 3)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "net.safetensors"
        save_file({k: v.contiguous() for k, v in net.state_dict().items()}, path)
        words = [sys.executable, "-m", "gifthorse.cli.app", "scan", str(path), "--images", images]
        words += ["--arch", name, "--input-size", f"{side}x{side}", "--normalize", "none"]
        words += ["--time-limit", f"{limit:g}s"]
        started = time.monotonic()
        done = subprocess.run(words, capture_output=True, text=True, check=False)  # noqa: S603
    seconds = time.monotonic() - started
    return {
        "net": name,
        "classes": classes,
        "side": side,
        "limit": limit,
        "seconds": round(seconds, 1),
        "over": round(seconds - limit, 1),
        "peak_mb": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss >> 10,
        "status": done.returncode,
        "said": done.stdout.strip().splitlines()[:1],
        "load": round(os.getloadavg()[0], 1),
        **machine(),
    }


def main() -> None:
    """Measure each net that has no line yet, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--limit", type=float, default=60)
    parser.add_argument("--images", default="imagenette:test")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", nargs="*", default=[])
    a = parser.parse_args()
    a.out.parent.mkdir(parents=True, exist_ok=True)
    lines = a.out.read_text().splitlines() if a.out.exists() else []
    known = {(r["net"], r["classes"]): r for r in map(json.loads, lines)}
    for name, classes, side in NETS:
        if (name, classes) in known or (a.only and name not in a.only):
            continue
        # In a process of its own: the peak of memory is that of the largest child so far.
        pid = os.fork()
        if not pid:
            found = measured(name, classes, side, a.images, a.limit)
            with a.out.open("a") as out:
                out.write(json.dumps(found) + "\n")
            os._exit(0)
        os.waitpid(pid, 0)
    print("| net | classes | side | limit, s | took, s | over, s | peak MB | exit |")
    print("|---|---|---|---|---|---|---|---|")
    for row in map(json.loads, a.out.read_text().splitlines()):
        figures = (row["limit"], row["seconds"], row["over"], row["peak_mb"], row["status"])
        print("|", " | ".join(map(str, (row["net"], row["classes"], row["side"], *figures))), "|")


if __name__ == "__main__":
    main()
