"""What a bench consists of: cells to be judged, and the tasks that lead there, each with a key."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cache, lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

from gifthorse.attacks import ATTACKS
from gifthorse.bench.protocol import EvalConfig, Sizes
from gifthorse.bench.sources import REGISTRY, code_digest, modules_of, spelled
from gifthorse.bench.store import SCHEMA
from gifthorse.core.errors import UnknownMethod, UsageError
from gifthorse.core.fields import AtLeast, NotNegative, method
from gifthorse.core.options import describe, vary
from gifthorse.detection import DETECTORS
from gifthorse.filtering import FILTERS
from gifthorse.models.zoo import NETS
from gifthorse.remedies import REMEDIES
from gifthorse.training import Recipe

READING = 600.0  # seconds to read models and to measure, beside what a defense takes
IMPORTED = "import:"  # in front of the key of an imported model, where data stand in a cell

TaskKind: TypeAlias = Literal["train", "implant", "judge"]
Family: TypeAlias = Literal["attack", "detector", "filter", "remedy"]

FAMILIES: dict[Family, Mapping[str, Any]] = {
    "attack": ATTACKS,
    "detector": DETECTORS,
    "filter": FILTERS,
    "remedy": REMEDIES,
}
# What makes results beside methods and nets; what these import counts as well.
MAKING, JUDGING, IMPORTING = (f"gifthorse.bench.{part}" for part in ("making", "judge", "imports"))

DEFENSES: tuple[Family, ...] = ("detector", "filter", "remedy")


def family(name: str) -> Family:
    """Return which family of defenses a name belongs to.

    Names that several families have are written with the family: `detector:abs`.

    Raises:
        UnknownMethod: If no defense, or more than one, is called that.
    """
    head, colon, rest = name.partition(":")
    if colon:
        if head not in DEFENSES:
            raise UnknownMethod.among("family of defenses", head, DEFENSES)
        kinds: list[Family] = [kind for kind in DEFENSES if kind == head]
        if rest not in FAMILIES[kinds[0]]:
            raise UnknownMethod.among(head, rest, FAMILIES[kinds[0]])
        return kinds[0]
    found = [kind for kind in DEFENSES if name in FAMILIES[kind]]
    if not found:
        known = [n for kind in DEFENSES for n in FAMILIES[kind]]
        raise UnknownMethod.among("defense", name, known)
    if len(found) > 1:
        raise UnknownMethod(f"{name!r} is a {' and a '.join(found)}: write {found[0]}:{name}")
    return found[0]


@dataclass(frozen=True)
class Choice:
    """A method of a registry, with options.

    Attributes:
        family: Whose registry.
        name: Its name there.
        label: What tables call it; several choices may share a method.
        options: What differs from the registry's defaults: dotted names and values, sorted.
    """

    family: Family
    name: str
    label: str
    options: tuple[tuple[str, Any], ...] = ()

    @property
    def method(self) -> Any:
        """The method itself.

        Raises:
            UnknownMethod: If the registry has no such name.
            BadOption: If an option does not exist or a value does not fit.
        """
        registry = FAMILIES[self.family]
        if self.name not in registry:
            raise UnknownMethod.among(self.family, self.name, registry)
        return vary(registry[self.name], dict(self.options))

    def spoken(self) -> dict[str, Any]:
        """Return the choice for a record: every option as text, defaults too."""
        options = {k: str(v) for k, v in describe(self.method).items()}
        return {
            "family": self.family,
            "name": self.name,
            "label": self.label,
            "options": options,
        }


@method
class Setting:
    """What all cells of a plan have in common.

    Attributes:
        images: Training images, spread over the classes; None takes all.
        test: Test images; None takes all.
        sizes: How many clean images a defense gets, of those that no training saw.
        evaluation: How defenses are judged.
        target: The class that stamped images come out as.
        start: Whether an attack retrains the `benign` net or starts from `scratch`.
        recipe: How the benign net is trained.
        benign: A file of weights that is taken for the benign net instead; a plan names it relative
            to itself. All seeds share it.
        time_limit: Seconds that a defense may take on a model; None for no limit.
        threads: Processor threads of a task; more are faster and give slightly other figures.
    """

    images: Annotated[int, AtLeast(1)] | None = None
    test: Annotated[int, AtLeast(1)] | None = None
    sizes: Sizes = Sizes()
    evaluation: EvalConfig = EvalConfig()
    target: Annotated[int, NotNegative] = 0
    start: Literal["benign", "scratch"] = "benign"
    recipe: Recipe = Recipe()
    benign: str = ""
    time_limit: Annotated[float, NotNegative] | None = None
    threads: Annotated[int, AtLeast(1)] = 1


@dataclass(frozen=True)
class Cell:
    """One entry of the table: a defense against an attack on a net, data and seed.

    Attributes:
        data: Name of a packed data set, or `trojai:SEED`.
        net: Name of a net.
        attack: None for the clean twin.
        defense: None for the model as it is.
        seed: Of training, attack and defense.
        setting: What it has in common with the others.
    """

    data: str
    net: str
    attack: Choice | None
    defense: Choice | None
    seed: int
    setting: Setting = field(default_factory=Setting)

    @property
    def words(self) -> str:
        """The cell in a few words, for people."""
        attack = self.attack.label if self.attack else "clean"
        defense = self.defense.label if self.defense else "no defense"
        return f"{self.data} {self.net} {attack} {defense} seed {self.seed}"


@dataclass(frozen=True)
class Task:
    """A piece of work: train a benign net, implant a backdoor, or judge a cell.

    Attributes:
        kind: Which of them.
        key: Digest of everything that the result depends on.
        cell: The cell, cut to what this task is about.
        benign: Key of the benign net.
        implant: Key of the backdoored net, if the cell has one.
        after: Keys of tasks that must be done before.
        device: Where it is done, which changes nothing but rounding.
    """

    kind: TaskKind
    key: str
    cell: Cell
    benign: str = ""
    implant: str = ""
    after: tuple[str, ...] = ()
    device: str = "cpu"

    @property
    def words(self) -> str:
        """The task in a few words, for people."""
        return f"{self.kind} {self.cell.words}"

    @property
    def limit(self) -> float:
        """Seconds after which the task is given up, however it spends them.

        A method is asked to stop after the plan's time limit. One that does not hear gets as much
        again, and time to read models and to measure.
        """
        seconds = self.cell.setting.time_limit
        return math.inf if seconds is None or self.kind != "judge" else 2 * seconds + READING


def tasks(cells: Iterable[Cell]) -> list[Task]:
    """Return all work that leads to some cells, each piece once, parents first."""
    out: dict[str, Task] = {}
    for cell in cells:
        for task in (*_parents(cell), judging(cell)):
            out.setdefault(task.key, task)
    order = {"train": 0, "implant": 1, "judge": 2}
    return sorted(out.values(), key=lambda task: order[task.kind])


def judging(cell: Cell) -> Task:
    """Return the task whose record is the cell's."""
    parents = _parents(cell)
    said = {
        "defense": cell.defense and _identity(cell.defense),
        "code": code_digest(frozenset(_judging_code(cell))),
        "seed": cell.seed,
        "evaluation": repr([cell.setting.test, cell.setting.sizes, cell.setting.evaluation]),
        "time_limit": cell.setting.time_limit,
    }
    # The drop in accuracy is against the benign net, so an implant's figures need it as well.
    key = digest("judge", said, parents)
    benign, implant = parents[0].key, parents[1].key if cell.attack else ""
    return Task("judge", key, cell, benign, implant, tuple(p.key for p in parents))


def _parents(cell: Cell) -> list[Task]:
    return _models(replace(cell, defense=None))


@lru_cache(4096)
def _models(cell: Cell) -> list[Task]:
    """Return the tasks that make the model of a cell without a defense."""
    s = cell.setting
    bare = replace(cell, attack=None)
    if cell.data.startswith(IMPORTED):
        key = cell.data.removeprefix(IMPORTED)
        return [Task("train", key, bare, key)]
    net = NETS.get(cell.net)
    code = code_digest(frozenset({MAKING}) | modules_of((net, s.recipe)))
    common = [cell.data, cell.net, spelled(net), code, cell.seed, s.images, s.threads]
    first = digest("train", [common, _contents(s.benign) if s.benign else repr(s.recipe)], [])
    train = Task("train", first, bare, first)
    if cell.attack is None:
        return [train]
    said = [_identity(cell.attack), s.target, s.start]
    key = digest("implant", said, [train])
    return [train, Task("implant", key, cell, first, key, (first,))]


def digest(kind: str, said: Any, parents: Iterable[Task]) -> str:
    """Return the key of a task: 24 hexadecimal digits of a digest of all it depends on."""
    whole = [SCHEMA, kind, said, [p.key for p in parents]]
    text = json.dumps(whole, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def spoken(cell: Cell) -> dict[str, Any]:
    """Return a cell for its record: names, options with defaults, setting."""
    return {
        "data": cell.data,
        "net": cell.net,
        "attack": cell.attack and cell.attack.spoken(),
        "defense": cell.defense and cell.defense.spoken(),
        "seed": cell.seed,
        "setting": asdict(cell.setting) | {"benign": Path(cell.setting.benign).name},
    }


@cache
def _identity(choice: Choice) -> list[str]:
    """Return what a method's results depend on: its options with types, and the code of it all."""
    method = choice.method
    return [choice.family, choice.name, repr(method), code_digest(modules_of(method))]


def _judging_code(cell: Cell) -> set[str]:
    """Return what judges a cell; nothing says which net an imported model will have."""
    return {JUDGING, IMPORTING, REGISTRY} if cell.data.startswith(IMPORTED) else {JUDGING}


@cache
def _contents(path: str) -> str:
    """Return a digest of a file.

    Raises:
        UsageError: If it cannot be read.
    """
    try:
        return hashlib.sha256(Path(path).read_bytes()).hexdigest()
    except OSError as error:
        raise UsageError(f"the benign net {path} cannot be read: {error.strerror}") from error
