"""How long a bench's records take to read: as tables, and as the answer to a question in SQL.

Makes synthetic records in a temporary folder, of the size that real ones have, and reads them once
to warm the system's file cache, since they were written a moment ago anyway.

    python benchmarks/bench_query.py --records 1000 100000
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import resource
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import count, islice, product
from pathlib import Path
from typing import Any

from gifthorse.bench.printing import text
from gifthorse.bench.query import query
from gifthorse.bench.relation import frame
from gifthorse.bench.store import SCHEMA, Store
from gifthorse.bench.tables import tables
from setting import machine

GROUPS = (
    "select defense_label, attack_label, count(*), avg(accuracy), stddev_samp(asr), "
    "quantile_cont(seconds, 0.9) from records where status = 'ok' group by all order by all"
)
OWN = {
    "remedy": "accuracy asr asr_all ra tmc ccc ccc_correct cad ard tmc_change ccc_change der rir",
    "filter": "tpr fpr precision f1 decided auroc auprc tpr_roc tpr_zoo tpr_all fpr_all acc_sys",
    "detector": "score threshold suspected confirmed aiv mln mln_eff mjs mjs_half recovered_asr",
}


def cells() -> Iterator[tuple[int, dict[str, Any] | None, dict[str, Any] | None]]:
    """Yield seeds, attacks and defenses, without end."""
    attacks = [None, *(choice("attack", f"attack_{n}") for n in range(9))]
    kinds = [kind for kind in OWN for _ in range(5)]
    defenses = [None, *(choice(kind, f"{kind}_{n}") for n, kind in enumerate(kinds))]
    for seed in count():
        for attack, defense in product(attacks, defenses):
            yield seed, attack, defense


def choice(family: str, name: str) -> dict[str, Any]:
    """Return a method as a record has it, with a dozen options."""
    options = {f"recipe.option_{n}": str(n / 10) for n in range(12)}
    return {"family": family, "name": name, "label": name, "options": options}


def record(
    seed: int, attack: dict[str, Any] | None, defense: dict[str, Any] | None, draw: random.Random
) -> dict[str, Any]:
    """Return a synthetic record."""
    setting = {"images": 5000, "test": 4000, "fit": 500, "calibration": 500, "pairs": 100}
    setting |= {"recipe": {f"option_{n}": n for n in range(12)}, "time_limit": 600}  # type: ignore[dict-item]
    cell = {"data": "cifar10", "net": "resnet20", "seed": seed, "attack": attack}
    cell |= {"defense": defense, "setting": setting}
    names = ["accuracy_before", *OWN[defense["family"] if defense else "remedy"].split()]
    key = hashlib.sha256(json.dumps(cell).encode()).hexdigest()[:24]
    figures: dict[str, float | None] = {}
    for name in names:
        figures[name] = draw.random()
        figures |= {f"{name}_{end}": draw.random() for end in ("low", "high", "n")}
    times = {"seconds": 100 * draw.random(), "started": "2026-11-21T15:00:00+00:00"}
    return {
        "schema": SCHEMA,
        "key": key,
        "cell": cell,
        "status": draw.choices(("ok", "timeout", "error"), (98, 1, 1))[0],
        "error": None,
        "figures": figures,
        "words": {"label": "BACKDOORED"},
        "models": {"benign": key, "implant": key, "weights": key * 2},
        "versions": {"gifthorse": "0.1.0", "torch": "2.10.0"},
        "command": f"gifthorse bench run PLAN --only {key}",
        "times": times | {"peak_memory": 10**9, "host": "somewhere", "fit_seconds": 3.0},
    }


def make(root: Path, number: int) -> int:
    """Write records as a store has them, and return how many bytes that are."""
    draw, size = random.Random(0), 0  # noqa: S311
    for seed, attack, defense in islice(cells(), number):
        one = record(seed, attack, defense, draw)
        path = root / "records" / one["key"][:2] / f"{one['key']}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        size += path.write_text(json.dumps(one, indent=1, sort_keys=True))
    return size


def clocked(name: str, work: Callable[[], Any]) -> dict[str, float]:
    """Return the seconds that some work takes, by the clock and of all processors together."""
    started, busy = time.perf_counter(), time.process_time()
    work()
    wall, cpu = time.perf_counter() - started, time.process_time() - busy
    return {name: round(wall, 2), f"{name}_cpu": round(cpu, 2)}


def measure(number: int) -> dict[str, float]:
    """Return what reading so many records takes, in seconds; the load is that of the machine."""
    with tempfile.TemporaryDirectory() as folder:
        size, store = make(Path(folder), number), Store(folder)
        for _ in islice(store.records(), 10):
            continue
        return {
            "records": number,
            "bytes_a_record": round(size / number),
            "load": round(os.getloadavg()[0], 1),
            **clocked("names", lambda: store.names("records")),
            **clocked("read", lambda: sum(1 for _ in store.records())),
            **clocked("summary", lambda: tabled(store)),
            **clocked("query", lambda: query(store, GROUPS)),
            "peak_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        }


def tabled(store: Store) -> str:
    """Return all tables of a store as text."""
    with frame(store) as con:
        return text(tables(con, reference=True))


def main() -> None:
    """Print the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--records", type=int, nargs="+", default=[1000, 100_000])
    a = parser.parse_args()
    rows = [measure(number) for number in a.records]
    print(json.dumps({"machine": machine(), "unit": "seconds", "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
