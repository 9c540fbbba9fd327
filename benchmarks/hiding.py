r"""Do IMC's disguises hide it? The scanner's anomaly index, and STRIP's recall, with and without.

On implants that `attacks.py` wrote. STRIP mixes an image half and half with clean mates and takes a
low mean entropy for a trigger; recall is at the entropy below which 5 % of clean images lie.

    python benchmarks/hiding.py runs/attacks/{badnet,imc,imc_nc,imc_strip}-0.safetensors \
      --images cifar200.npz --out hiding.json
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import Tensor

from gifthorse.core.metrics import rate
from gifthorse.core.run import Run
from gifthorse.core.types import Images, Implant, Samples
from gifthorse.detection import DETECTORS
from gifthorse.filtering.strip import entropy
from gifthorse.training import predict
from gifthorse.workflows.make import divide
from gifthorse.workflows.opening import Inputs, opened
from gifthorse.workflows.provenance import implanted
from setting import keep, kept, machine

MATES, SUSPECTS, FALSE_ALARMS = 8, 1000, 0.05


def mixed(made: Implant, x: Images, mates: Images) -> Tensor:
    """Return the mean entropy of each image's half mixtures with its mates, `(N,)`."""
    each = [
        entropy(predict(made.subject, (x + mates.roll(k, 0)[: len(x)]) / 2)) for k in range(MATES)
    ]
    return torch.stack(each).mean(0)


def strip(made: Implant, test: Samples) -> dict[str, float]:
    """Return the share of stamped images that STRIP finds when 5 % of clean ones alarm it."""
    x, y = test[torch.arange(2 * SUSPECTS)]
    x, mates, y = x[:SUSPECTS], x[SUSPECTS:], y[:SUSPECTS]
    bar = mixed(made, x, mates).quantile(FALSE_ALARMS)
    found = rate(mixed(made, made.trigger(x[y != made.goal.target]), mates) < bar)
    return {"tpr": found.value, "low": found.low, "high": found.high}


def main() -> None:
    """Judge the implants that are not in the JSON yet; print a line each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("implants", nargs="+", type=Path)
    parser.add_argument("--data", default="cifar10")
    parser.add_argument("--images", required=True)
    parser.add_argument("--detector", default="pixel_quick")
    parser.add_argument("--out", type=Path, required=True)
    a = parser.parse_args()
    data = divide(a.data)
    result = kept(a.out, {"rows": {}})
    for path in a.implants:
        name = path.stem.rpartition("-")[0] or path.stem
        if name not in result["rows"]:
            prepared = opened(str(path), Inputs(a.images))
            rng = torch.Generator().manual_seed(0)
            verdict = DETECTORS[a.detector](prepared.subject, prepared.samples, rng, Run())
            lead = verdict.findings[0].goal if verdict.findings else None
            result["rows"][name] = {
                "label": verdict.label,
                "class": None if lead is None else lead.target,
                "score": verdict.score,
                "aiv": verdict.statistics.get("anomaly_index"),
                "strip": strip(implanted(path, data), data.test),
            }
            result["machine"] = machine()
            keep(a.out, result)
        row = result["rows"][name]
        print(
            f"{name:12} {row['label']} {row['class']}  score {row['score']:.1f}  "
            f"AIV {row['aiv']:.1f}  STRIP {100 * row['strip']['tpr']:.0f} % found",
            flush=True,
        )


if __name__ == "__main__":
    main()
