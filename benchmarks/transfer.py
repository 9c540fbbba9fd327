r"""Does a backdoor survive fine-tuning, and other classifiers on its features?

TrojanZoo's Table 6 on implants that `attacks.py` wrote: tuning on clean data (none, a new last
layer, everything), and classifiers on the frozen features. With `--onto` the clean data are of
another task, as in Table 7; the target is then the class of the same number. One JSON, continued if
it is there.

    python benchmarks/transfer.py runs/attacks/{badnet,trojannn,latent,imc}-0.safetensors \
      --out transfer.json
    python benchmarks/transfer.py runs/attacks/{badnet,trojannn,latent,imc}-0.safetensors \
      --onto gtsrb --out onto.json
"""

from __future__ import annotations

import argparse
import time
from dataclasses import asdict
from pathlib import Path

import torch

from gifthorse.analysis.transfer import TUNINGS, Transfer
from gifthorse.core.run import Run
from gifthorse.data.samples import Subset
from gifthorse.training import Recipe
from gifthorse.workflows.make import divide, shorter
from gifthorse.workflows.provenance import implanted
from setting import keep, kept, machine

# ASR in percent at TrojanZoo's alpha of 0.8: none, partial, full; 2-FCN, Bayes, SVM, forest.
PAPER = {
    "badnet": "72.4 72.3 30.4 | 72.2 73.5 64.7 66.0",
    "trojannn": "91.5 89.6 27.1 | 90.8 90.3 82.9 81.1",
    "reflection": "79.2 77.0 12.4 | 78.3 76.8 61.5 63.7",
    "latent": "100 100 95.3 | 99.9 99.9 99.9 99.8",
    "imc": "100 99.9 88.7 | 99.9 100 99.9 99.8",
}
# The same from CIFAR-10 to ten classes of ImageNet (Table 7), partial, opaque; 10 % are chance.
PAPER_ONTO = {
    "badnet": "8.4",
    "trojannn": "7.8",
    "reflection": "8.6",
    "latent": "8.2",
    "imc": "9.4",
}


def main() -> None:
    """Tune the implants that are not in the JSON yet; print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("implants", nargs="+", type=Path)
    parser.add_argument("--data", default="cifar10")
    parser.add_argument("--onto", help="other data of the same image size to tune on")
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--test", type=int, default=4000)
    parser.add_argument("--epochs", type=int, default=10, help="TrojanZoo: 50")
    parser.add_argument("--out", type=Path, required=True)
    a = parser.parse_args()
    home = divide(a.data)
    data = shorter(divide(a.onto) if a.onto else home, a.images)
    tunings = TUNINGS[1:] if data.train.classes != home.train.classes else TUNINGS
    test = Subset(data.test, torch.arange(min(a.test, len(data.test))))
    recipe = Recipe(epochs=a.epochs, batch=96, lr=0.01, decay=2e-4, schedule="cosine")
    result = kept(a.out, {"rows": {}})
    for path in a.implants:
        name = path.stem.rpartition("-")[0] or path.stem
        if name not in result["rows"]:
            started, rng = time.monotonic(), torch.Generator().manual_seed(0)
            judge = Transfer(tunings=tunings, recipe=recipe)
            found = judge(implanted(path, home), data.train, test, rng, Run())
            row = {k: asdict(outcome) for k, outcome in found.items()}
            result["rows"][name] = {"outcomes": row, "seconds": time.monotonic() - started}
            result |= {"machine": machine(), "settings": {k: str(v) for k, v in vars(a).items()}}
            keep(a.out, result)
        cells = [
            f"{k} {100 * o['asr_all']['value']:.1f} (accuracy {100 * o['accuracy']['value']:.1f})"
            for k, o in result["rows"][name]["outcomes"].items()
        ]
        paper = (PAPER_ONTO if a.onto else PAPER).get(name, "-")
        print(f"{name}: {', '.join(cells)}   paper {paper}", flush=True)


if __name__ == "__main__":
    main()
