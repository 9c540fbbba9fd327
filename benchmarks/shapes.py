r"""TrojanZoo's claims about the shapes of triggers and the ways of training: which ones hold?

BadNet, TrojanNN, IMC and Latent on one benign CIFAR-10 net: success over opacity (Figs. 4 and 9)
and over size (Fig. 3), a single pixel (Table 14), regular against scattered with colors apart
(Table 15), modes of mixing (Table 18), from scratch against retrained (Table 17). One JSON a row,
as in `attacks.py`; claims are judged on those that are there.

    python benchmarks/calibrate.py run --out runs/bag --models 3      # 002 is the benign net
    python benchmarks/shapes.py runs/bag/002.safetensors --out runs/shapes
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from attacks import REDUCED, Place, run
from setting import keep

# Faint triggers need steps more than anything: few of them, and a small net makes them cheap.
PROFILE: dict[str, object] = {
    "mixing.rate": 0.1,
    "recipe.epochs": 5,
    "recipe.batch": 128,
    "recipe.lr": 0.1,
    "recipe.schedule": "cosine",
    "recipe.decay": 2e-4,
}
FAINT = 0.2  # TrojanZoo's alpha of 0.8
OPACITIES = (1.0, 0.4, FAINT, 0.1)
SIZES = (2, 3, 5)
THREE = ("badnet", "trojannn", "imc")
FOUR = (*THREE, "latent")
SCRATCH = "_scratch"
NOTHING = 0.25  # success of what did not get in: a tenth are images of the target class
WIDTH = 0.02  # what differs by less is called equal

Row = tuple[str, dict[str, object]]

# ASR in percent, target class included, from TrojanZoo: Figs. 3 and 4 and 9, Tables 14, 15, 17, 18.
PAPER = {
    "badnet_o1.0": 94.2, "badnet_o0.4": 86.2, "badnet_o0.2": 73.7, "badnet_o0.1": 49.6,
    "trojannn_o1.0": 99.7, "trojannn_o0.4": 99.1, "trojannn_o0.2": 88.9, "trojannn_o0.1": 65.6,
    "latent_o1.0": 100, "latent_o0.4": 99.9, "latent_o0.2": 97.7, "latent_o0.1": 95.4,
    "imc_o1.0": 100, "imc_o0.4": 99.9, "imc_o0.2": 97.9, "imc_o0.1": 93.6,
    "badnet_pixel": 95.1, "trojannn_pixel": 98.1, "imc_pixel": 99.7,
    "badnet_scatter_random": 97.6, "trojannn_scatter": 98.5, "imc_scatter": 94.5,
    "badnet_dataset": 59.3, "trojannn_dataset": 72.2, "imc_dataset": 92.0,
    "badnet_loss": 21.6, "trojannn_loss": 22.9, "imc_loss": 96.5,
    "badnet_scratch": 76.9, "trojannn_scratch": 98.9, "imc_scratch": 100,
}  # fmt: skip


def table() -> dict[str, Row]:
    """Return the rows: attack and options by name."""
    faint: dict[str, object] = {"stamp.opacity": FAINT}
    rows: dict[str, Row] = {}
    for name in FOUR:
        own = REDUCED.get(name, {})
        rows |= {f"{name}_o{o}": (name, own | {"stamp.opacity": o}) for o in OPACITIES}
    for name in THREE:
        rows |= {f"{name}_s{k}": (name, faint | {"stamp.size": k}) for k in SIZES if k != 3}
        rows[f"{name}_pixel"] = (name, {"stamp.size": 1})
        rows[f"{name}_scatter"] = (name, faint | {"stamp.form": "scatter"})
        rows |= {f"{name}_{m}": (name, faint | {"mixing.mode": m}) for m in ("dataset", "loss")}
        rows[name + SCRATCH] = (name, faint)
    for form in ("square", "scatter"):
        options = faint | {"stamp.form": form, "stamp.ink": "random"}
        rows[f"badnet_{form}_random"] = ("badnet", options)
    return rows


class Found:
    """What was measured: success with the target class, as TrojanZoo counts it, by row."""

    def __init__(self, folder: Path) -> None:
        self.records: dict[str, dict[str, Any]] = {}
        for name in table():
            path = folder / f"{name}.json"
            if path.exists():
                self.records[name] = json.loads(path.read_text())

    def rate(self, name: str) -> float | None:
        """Return the success of a row, or None if the row is not there."""
        record = self.records.get(name, {})
        value: float | None = record.get("figures", {}).get("asr_all", {}).get("value")
        return value

    def interval(self, name: str) -> tuple[float, float]:
        """Return how far the interval of a row reaches below and above its success."""
        one = self.records[name]["figures"]["asr_all"]
        return one["value"] - one["low"], one["high"] - one["value"]

    def enough(self, name: str) -> str:
        """Say whether a row succeeds on 90 %."""
        value = self.rate(name)
        if value is None:
            return "not run"
        held = "holds" if value >= 0.9 else "DOES NOT HOLD"
        return f"{held} ({100 * value:.1f}; paper {PAPER[name]:.1f})"

    def order(self, *names: str) -> str:
        """Say whether success grows along some rows, or stays within `WIDTH` of the greatest."""
        values = [self.rate(n) for n in names]
        if any(v is None for v in values):
            return "not run"
        known = [v for v in values if v is not None]
        held = all(later >= max(known[:i]) - WIDTH for i, later in enumerate(known) if i)
        said = " to ".join(f"{100 * v:.1f}" for v in known)
        paper = [f"{PAPER[n]:.1f}" for n in names if n in PAPER]
        beside = f"; paper {' to '.join(paper)}" if len(paper) == len(names) else ""
        if max(known) < NOTHING:
            return f"nothing to order: none gets in ({said}{beside})"
        return f"{'holds' if held else 'DOES NOT HOLD'} ({said}{beside})"


def claims(found: Found) -> Iterator[tuple[str, str]]:
    """Return each claim with what became of it."""
    for n in FOUR:
        rows = [f"{n}_o{o}" for o in reversed(OPACITIES)]
        yield f"Figs. 4, 9: {n} succeeds the more, the more opaque (0.1 to 1)", found.order(*rows)
    for o in OPACITIES:
        rows = [f"{n}_o{o}" for n in THREE]
        yield f"Fig. 9: at opacity {o} fixed, pre-optimized, co-optimized", found.order(*rows)
    for n in THREE:
        rows = [f"{n}_s2", f"{n}_o{FAINT}", f"{n}_s5"]
        yield f"Fig. 3: {n} succeeds the more, the larger (2, 3, 5)", found.order(*rows)
        yield f"Table 14: one opaque pixel is enough for 90 % ({n})", found.enough(f"{n}_pixel")
    yield from _scattered(found)
    for n in THREE:
        modes = ("dataset", "loss") if n == "imc" else ("loss", "dataset")
        rows = [f"{n}_{m}" for m in modes] + [f"{n}_o{FAINT}"]
        yield f"Table 18: {n} by {modes[0]}, by {modes[1]}, by batch", found.order(*rows)
        rows = [f"{n}_o{FAINT}", n + SCRATCH]
        yield f"Table 17: {n} retrained, from scratch", found.order(*rows)


def _scattered(found: Found) -> Iterator[tuple[str, str]]:
    for n in ("badnet", "trojannn"):
        yield f"Table 15: {n} gains by scattering", found.order(f"{n}_o{FAINT}", f"{n}_scatter")
    yield "Table 15: imc loses by scattering", found.order("imc_scatter", f"imc_o{FAINT}")
    square, scatter = "badnet_square_random", "badnet_scatter_random"
    apart = "Table 15, colors apart:"
    yield f"{apart} random beat white (square)", found.order(f"badnet_o{FAINT}", square)
    yield f"{apart} random beat white (scattered)", found.order("badnet_scatter", scatter)
    yield f"{apart} scattered beats square (random colors)", found.order(square, scatter)


def draw(found: Found, path: Path) -> None:
    """Draw success over opacity and over size."""
    from matplotlib.figure import Figure

    figure = Figure((8, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    for axes, points, label in (
        (left, [(o, "o", o) for o in OPACITIES], "opacity, 3x3"),
        (right, [(k, "s", k) if k != 3 else (3, "o", FAINT) for k in SIZES], "side, opacity 0.2"),
    ):
        for n in FOUR:
            there = [(x, f"{n}_{c}{v}") for x, c, v in points if f"{n}_{c}{v}" in found.records]
            there = [(x, name) for x, name in there if found.rate(name) is not None]
            if not there:
                continue
            y = [100 * (found.rate(name) or 0) for _, name in there]
            low, high = zip(*(found.interval(name) for _, name in there), strict=True)
            spread = [[100 * v for v in low], [100 * v for v in high]]
            axes.errorbar([x for x, _ in there], y, spread, marker="o", capsize=2, label=n)
        axes.set_xlabel(label)
        axes.grid(alpha=0.3)
    left.set_ylabel("success, target class included, %")
    left.legend(loc="lower right")
    figure.savefig(path, dpi=150)


def work(a: argparse.Namespace) -> None:
    """Run the rows that have no JSON yet."""
    every = table()
    places: dict[bool, Place] = {}
    for name in a.rows or every:
        path = a.out / f"{name}.json"
        if path.exists():
            continue
        scratch = name.endswith(SCRATCH)
        if scratch not in places:
            places[scratch] = Place(a, scratch)
        attack, options = every[name]
        record = run(attack, PROFILE, options, 0, places[scratch], path)
        keep(path, record)
        print(f"{name}: {100 * record['figures']['asr_all']['value']:.1f} %", flush=True)


def show(found: Found) -> None:
    """Print the table and what became of the claims."""
    print("| row | accuracy | CAD | ASR, all | TMC | NSR | s | paper: ASR, all |")
    print("|---|---|---|---|---|---|---|---|")
    for name, record in found.records.items():
        figures = {k: f["value"] for k, f in record["figures"].items()}
        cells = [name, *(f"{100 * figures[k]:.1f}" for k in ("accuracy", "cad", "asr_all", "tmc"))]
        cells += [f"{record['nsr']['value']:.2f}", f"{record['seconds']:.0f}"]
        print(f"| {' | '.join(cells)} | {PAPER.get(name, '')} |")
    print()
    for claim, said in claims(found):
        print(f"- {claim}: {said}")


def main() -> None:
    """Run the rows that have no JSON yet, then judge the claims."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--data", default="cifar10")
    parser.add_argument("--images", type=int, default=20000)
    parser.add_argument("--test", type=int, default=4000)
    parser.add_argument("--target", type=int, default=0)
    parser.add_argument("--rows", nargs="+", help="only these")
    parser.add_argument("--show", action="store_true", help="judge what is there, run nothing")
    parser.add_argument("--out", type=Path, required=True)
    a = parser.parse_args()
    a.out.mkdir(parents=True, exist_ok=True)
    if not a.show:
        work(a)
    show(Found(a.out))
    draw(Found(a.out), a.out / "shapes.png")


if __name__ == "__main__":
    main()
