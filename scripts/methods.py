"""Write docs/methods.md from what `gifthorse explain` knows: docstrings and defaults.

python scripts/methods.py          # writes docs/methods.md
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from gifthorse.attacks import ATTACKS
from gifthorse.core import options
from gifthorse.detection import BESIDE, DETECTORS, PRESETS, SECOND
from gifthorse.detection.calibrations import shipped
from gifthorse.filtering import FILTERS
from gifthorse.inversion import INVERTERS
from gifthorse.remedies import REMEDIES
from gifthorse.search import RandomAffine

PAGE = Path(__file__).parents[1] / "docs" / "methods.md"
HEAD = """\
# Methods

This page is made from the code by `python scripts/methods.py`; a test compares the two. What a
method assumes and its options are also what `gifthorse explain NAME` prints. Why a method departs
from its paper stands under *Differs*.

Every option can be changed with `--set NAME=VALUE`, an inverter's within a detector with
`--set inverter.NAME=VALUE`. Some options are made of options, which [Parts](#parts) lists: `config`
by default `SearchConfig(success_threshold=0.9)` is a `SearchConfig` with all else as listed there,
`--set config.success_threshold=0.95` changes one of them, and `--set 'turning={}'` turns on one
that is `None`.
"""
DETECTION = """\
## Detectors

What `gifthorse scan` runs, by `--preset`, unless `--detector` names others:
"""
OVERVIEW = """\
All of them. One without a calibration can say `SUSPICIOUS` at most, and so can a calibrated one
whose options were changed; see [what a report means](trust.md#confidence-and-calibration).
"""
OPTIONS = "The names that stand for it, and what each of them sets; all else is as by default.\n"
INVERSION = """\
## Inverters

They search the smallest trigger for a goal. `gifthorse scan` runs them inside a detector,
`gifthorse compare-triggers` by themselves.
"""
FILTERING = """\
## Filters

They say which of many images carry a trigger. `gifthorse filter` runs them; those whose names end
in `_dataset` are shown a training set with its labels.
"""
REPAIRING = """\
## Remedies

They return a safer classifier, by other weights or by inputs that are reformed first. `gifthorse
repair` runs them. Those that reform inputs (`down_up`, `projection`, `smoothing`) leave the weights
as they are: `repair` judges them alike, and writes the record and what the reformer learned
(`NAME.reformer.safetensors`, of `projection`) but no model. What they call returns in Python takes
raw images and is a `torch.nn.Module`: `REMEDIES["smoothing"](subject, clean, rng, Run()).net`.
"""
PARTS = """\
## Parts

Options that are made of options.
"""


def page() -> str:
    """Return docs/methods.md."""
    parts = [HEAD, "## Attacks\n", "They exist to make labeled test models for defenses.\n"]
    parts += groups(ATTACKS)
    runs = (
        (f"`{n}`", names(run), names(BESIDE.get(n, ())), names(SECOND.get(n, ())))
        for n, run in PRESETS.items()
    )
    parts += [
        DETECTION,
        table(("preset", "detectors", "beside them", "in doubt"), runs),
        OVERVIEW,
        overview(),
        *groups(DETECTORS),
    ]
    parts += [INVERSION, *groups(INVERTERS), FILTERING, *groups(FILTERS)]
    parts += [REPAIRING, *groups(REMEDIES)]
    parts += [PARTS, *(section(kind.__name__, kind()) for kind in shared())]
    return "\n".join(parts)


def overview() -> str:
    """Return a table of all detectors."""
    rows = []
    for name, detector in DETECTORS.items():
        kind, inner = type(detector), getattr(detector, "inverter", None)
        inverter = "" if inner is None else link(title(INVERTERS, type(inner)))
        calibrated = "yes" if name in shipped().detectors else ""
        rows.append((f"`{name}`", link(title(DETECTORS, kind)), inverter, calibrated))
    return table(("detector", "is", "around", "calibrated"), rows)


def groups(registry: Mapping[str, Any]) -> Iterator[str]:
    """Yield one section a class of a registry, with a table of its names if there are several.

    Classes that are built around an inverter come first.
    """
    kinds: dict[Any, None] = dict.fromkeys(map(type, registry.values()))
    for kind in sorted(kinds, key=lambda kind: not around(kind)):
        rows = {name: thing for name, thing in registry.items() if type(thing) is kind}
        first = next(iter(rows.values()))
        base = kind(**{part: getattr(first, part) for part in inverters(kind)})
        yield section(title(registry, kind), base)
        if around(kind) or len(rows) > 1:
            yield OPTIONS
            yield variants(rows)


def inverters(kind: type) -> list[str]:
    """Return the names of the inverters that a method is built around."""
    return [f.name for f in fields(kind) if f.type == "Inverter"]


def around(kind: type) -> bool:
    """Return whether a method is built around an inverter."""
    return bool(inverters(kind))


def title(registry: Mapping[str, Any], kind: type) -> str:
    """Return the heading of a class: the first name that stands for it, or its own name."""
    if around(kind):
        return kind.__name__
    return next(name for name, thing in registry.items() if type(thing) is kind)


def section(heading: str, thing: object) -> str:
    """Return prose and options of a method or a part."""
    return "\n".join([f"### {heading}\n", prose(type(thing)), *attributes(thing)])


def prose(kind: type) -> str:
    """Return a class's docstring without its attributes and examples."""
    paragraphs = (inspect.getdoc(kind) or "").split("\n\n")
    kept = (p for p in paragraphs if not p.startswith(("Attributes:", "Example:")))
    return "".join(f"{p.replace('Source:', '*Source:*').replace('Differs:', '*Differs:*')}\n\n"
                   for p in kept).rstrip() + "\n"  # fmt: skip


def attributes(thing: object) -> Iterator[str]:
    """Yield a table of the options of a method or a part, if it has any."""
    rows = [
        (
            f"`{f.name}`",
            code(getattr(thing, f.name)),
            options.allowed(thing, f.name),
            meaning(thing, f.name),
        )
        for f in fields(thing)  # type: ignore[arg-type]
        if f.name not in inverters(type(thing))
    ]
    if rows:
        yield table(("option", "default", "values", "meaning"), rows)


def meaning(thing: object, name: str) -> str:
    """Return what the docstring of a dataclass says about one of its fields."""
    text, value = options.meaning(thing, name), getattr(thing, name)
    assert text, f"{type(thing).__name__} does not say what {name} is"
    words = text.replace("|", "\\|")
    if type(value) in shared():
        return f"{words} See {link(type(value).__name__)}."
    return words


def variants(methods: Mapping[str, Any]) -> str:
    """Return a table of the names that stand for one class, with what each of them sets."""
    rows = []
    for name, method in methods.items():
        inner = {part: type(getattr(method, part)) for part in inverters(type(method))}
        base = type(method)(**{part: kind() for part, kind in inner.items()})
        around_what = [link(title(INVERTERS, kind)) for kind in list(inner.values())[:1]]
        changed = ", ".join(f"`{option}={value}`" for option, value in changes(method, base))
        rows.append((f"`{name}`", *around_what, changed or "nothing"))
    return table(("name", "around", "sets") if len(rows[0]) == 3 else ("name", "sets"), rows)


def changes(thing: Any, base: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield option and value wherever a dataclass is not as another one of its class."""
    for f in fields(thing):
        value, default = getattr(thing, f.name), getattr(base, f.name)
        if f.name in inverters(type(thing)):
            yield from changes(value, default, f"{f.name}.")
        elif value != default:
            yield f"{prefix}{f.name}", short(value)


def short(value: Any) -> str:
    """Return a value as text, a dataclass with what differs from its defaults only."""
    if isinstance(value, float) and len(str(value)) > 10:
        return f"{value:.4g}"
    if not is_dataclass(value):
        return str(value)
    kind: Any = type(value)
    changed = (f"{name}={text}" for name, text in changes(value, kind()))
    return f"{kind.__name__}({', '.join(changed)})"


def shared() -> list[Any]:
    """Return the classes of options that are made of options, by name."""
    found: set[type] = set()
    registries = (ATTACKS, DETECTORS, INVERTERS, FILTERS, REMEDIES)
    todo: list[Any] = [*(m for registry in registries for m in registry.values()), RandomAffine()]
    methods = set(map(type, todo)) - {RandomAffine}
    for thing in todo:
        if type(thing) not in methods:
            found.add(type(thing))
        todo += [v for f in fields(thing) if is_dataclass(v := getattr(thing, f.name))]
    return sorted(found, key=lambda kind: kind.__name__)


def names(of: Iterable[str]) -> str:
    """Return names as code."""
    return ", ".join(f"`{name}`" for name in of)


def code(value: object) -> str:
    """Return a value as code."""
    return f"`{short(value)}`" if short(value) else '`""`'


def link(heading: str) -> str:
    """Return a link to a section of the page."""
    return f"[{heading}](#{heading.lower()})"


def table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    """Return a Markdown table."""
    lines = [head, ("---",) * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
