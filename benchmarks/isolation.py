"""What reading apart costs a scan of the gift: seconds, in one run, and memory of the readers.

    python benchmarks/isolation.py [--repeats N]

Opens the gift and its images as `gifthorse scan` does: in this process, with readers that are still
to be started (what one scan pays), and with readers that stand ready (what each further file pays).
Prints JSON.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import IO, Any
from unittest.mock import patch

from torch import Tensor

from gifthorse.core.isolated import readers
from gifthorse.workflows.opening import Inputs, opened

GIFT = Path(__file__).parents[1] / "examples" / "gift"


def here(
    function: Callable[..., Any],
    arguments: Sequence[object],
    *,
    streams: Sequence[IO[bytes]] = (),
    **_: object,
) -> tuple[Any, list[Tensor]]:
    """Do in this process what a reader does."""
    value, tensors = function(*streams, *arguments)
    return json.loads(json.dumps(value)), list(tensors)


def seconds() -> float:
    """Time of opening the gift and its images."""
    begun = time.perf_counter()
    opened(str(GIFT / "gift.safetensors"), Inputs(str(GIFT / "clean.npz"), device="cpu"))
    return time.perf_counter() - begun


def main() -> None:
    """Measure by turns, so that a busy machine slows all alike."""
    line = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    line.add_argument("--repeats", type=int, default=5)
    repeats = line.parse_args().repeats
    seconds()  # imports, and pages of the files
    inside, cold, warm = [], [], []
    for _ in range(repeats):
        with patch.object(readers, "call", here):
            inside.append(seconds())
        readers.stop()
        cold.append(seconds())
        warm.append(seconds())
    readers.stop()
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    figures = {
        "in this process, s": median(inside),
        "readers to be started, s": median(cold),
        "readers ready, s": median(warm),
        "added to one scan, s": median(cold) - median(inside),
        "added to each further file, s": median(warm) - median(inside),
        "processor time of starting them, s": (used.ru_utime + used.ru_stime) / (repeats + 1),
        "peak memory of the readers, MB": used.ru_maxrss / 1024,
    }
    print(json.dumps({k: round(v, 3) for k, v in figures.items()}, indent=1))


if __name__ == "__main__":
    main()
