"""An analysis as files: pictures, and beside each what it was drawn from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TypeAlias

from gifthorse.analysis.projection import GROUPS
from gifthorse.report.figures import plots
from gifthorse.report.json import write_json
from gifthorse.workflows.analyze import Case

Draw: TypeAlias = Callable[[Path], None]


def write_case(case: Case, folder: Path, names: Sequence[str] = ()) -> list[Path]:
    """Write pictures, and what they were drawn from beside them; return their paths.

    Args:
        case: What a dossier returned.
        folder: Where to; it must exist.
        names: Names of classes.

    Raises:
        UsageError: If a file cannot be written.
    """
    t = case.goal.target
    known = names[t] if t < len(names) else ""
    plain = "".join(c for c in known if c.isprintable())[:24]
    name = plain.replace("$", r"\$").strip() or f"class {t}"  # no mathematics
    written = []
    for stem, (data, draw) in {**_inside(case, name), **_looks(case, name)}.items():
        said = {"goal": case.goal, "pairs": case.pairs, "asr": case.asr, stem: data}
        write_json(folder / f"{stem}.json", said)
        written.append(folder / f"{stem}.json")
        if draw is not None:
            draw(folder / f"{stem}.png")
            written.append(folder / f"{stem}.png")
    return written


def _inside(case: Case, name: str) -> dict[str, tuple[object, Draw | None]]:
    """Return what is said of features, neurons and channels, and how it is drawn."""
    view, path = {**asdict(case.view), "group_names": GROUPS}, case.path
    return {
        "features": (view, partial(plots.scatter, view=case.view, title="Penultimate features")),
        "separation": (
            case.curves,
            partial(
                plots.separation_lines,
                curves=case.curves,
                title="Neurons that clean and that stamped images light up most",
            ),
        ),
        "path": (
            {"graph": path, "tac": case.changes, "silenced": case.silenced},
            partial(plots.path_graph, found=path, title=f"Channels that lead to {name}", name=name),
        ),
        "similarity": (case.likeness, None),
    }


def _looks(case: Case, name: str) -> dict[str, tuple[object, Draw | None]]:
    """Return what is said of attribution maps, and how it is drawn; nothing without captum."""
    seen, n = case.attention, len(case.shown[0])
    if seen is None:
        return {}
    out: dict[str, tuple[object, Draw | None]] = {
        "attribution": (
            {"shift": seen.shift, "layer": seen.before.layer},
            partial(
                plots.attribution_rows,
                images=case.shown,
                maps=(seen.before.values[:n], seen.after.values[:n]),
                title=f"What speaks for {name} (Grad-CAM)",
            ),
        )
    }
    if seen.table:
        title = "How far the trigger moves attribution maps"
        out["table19"] = (seen.table, partial(plots.distance_bars, cells=seen.table, title=title))
    return out
