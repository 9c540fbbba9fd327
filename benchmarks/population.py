"""Make the population: clean and backdoored models of known truth, of `evidence/population.toml`.

    python benchmarks/population.py list                                # all, with their halves
    python benchmarks/population.py split > evidence/split.json         # before any score is seen
    python benchmarks/population.py make --out runs/population          # cheapest first, resumable
    python benchmarks/population.py make --out runs/one --only warp-003
    python benchmarks/population.py measure --out runs/population --detectors pixel_quick blend

A model is drawn from its family and its number alone, so that any one can be made again. Each is
written with its provenance, and with `NAME.truth.json`: what was planted and how well it took.
"""

from __future__ import annotations

import argparse
import json
import time
import tomllib
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Generator

from gifthorse.attacks import ATTACKS
from gifthorse.core.metrics import asr
from gifthorse.core.options import vary
from gifthorse.core.run import Run
from gifthorse.core.types import Attack, Goal, Implant, Subject
from gifthorse.data.samples import InMemory, whole
from gifthorse.detection import DETECTORS
from gifthorse.models import load
from gifthorse.models.normalize import Classifier
from gifthorse.training import Recipe, fit, predict
from gifthorse.triggers import Stamp
from gifthorse.workflows.evaluate import eval_images, figures, stamp
from gifthorse.workflows.make import DataSplits, divide, draw, fresh, implant, shorter, train_clean
from gifthorse.workflows.provenance import TestModel, write
from setting import keep

PLAN = Path(__file__).parents[1] / "evidence/population.toml"
TOOK = 0.8  # least success of an implant that counts as one
SECOND = Stamp(size=4, place="upper_left", ink="random")
HALVES = ("tuning", "judging")


@dataclass(frozen=True)
class Task:
    """What a net is trained for."""

    data: str
    net: str
    images: int
    epochs: int
    flip: bool
    scan: int
    least: float
    classes: int | None = None
    judging: bool = False


@dataclass(frozen=True)
class Family:
    """Models that have the same kind of trigger, or the same kind of training without one."""

    count: int
    tasks: list[str]
    attack: str | None = None
    control: bool = False
    source: bool = False
    second: bool = False
    trained: bool = False
    slow: bool = False
    longer: int = 1
    options: dict[str, list[Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class Member:
    """One model of the population."""

    name: str
    family: str
    task: str
    half: str
    seed: int
    round: int
    options: dict[str, Any]


def read() -> tuple[dict[str, Task], dict[str, Family], list[Member]]:
    """Return tasks, families and all models of the plan, cheapest first."""
    plan = tomllib.loads(PLAN.read_text())
    spent = set(plan["spent"])
    tasks = {name: Task(**table) for name, table in plan["tasks"].items()}
    families = {name: Family(**table) for name, table in plan["families"].items()}
    members = [
        _member(name, family, i, plan["seed"] + 1000 * place + i, tasks)
        for place, (name, family) in enumerate(families.items())
        for i in range(family.count)
    ]
    members = [replace(m, half="tuning") if m.name in spent else m for m in members]
    cost = {name: list(tasks).index(name) for name in tasks}

    def order(m: Member) -> tuple[bool, int, int, str]:
        return families[m.family].slow, m.round, cost[m.task], m.name

    return tasks, families, sorted(members, key=order)


def _member(name: str, family: Family, i: int, seed: int, tasks: dict[str, Task]) -> Member:
    turn, place = divmod(i, len(family.tasks))
    task, rng = family.tasks[place], Generator().manual_seed(seed)
    options = {
        key: values[int(torch.randint(len(values), (1,), generator=rng))]
        for key, values in family.options.items()
    }
    # Halves take turns over tasks, and begin with another one at every other family.
    half = HALVES[tasks[task].judging or (seed // 1000 + turn + place) % 2]
    return Member(f"{name}-{i:03}", name, task, half, seed, turn, options)


# Making ---------------------------------------------------------------------------------------


@cache
def data_of(task: Task) -> DataSplits:
    """Return the data of a task: its first classes, and so many training images."""
    every = divide(task.data)
    if task.classes is None:
        return shorter(every, task.images)
    count = task.classes

    def only(samples: InMemory) -> InMemory:
        mine = samples.labels < count
        return InMemory(samples.images[mine], samples.labels[mine], count)

    train, validation, test = map(only, (every.train, every.validation, every.test))
    names = every.class_names[:count]
    fewer = DataSplits(every.name, train, validation, test, names, every.normalization)
    return shorter(fewer, task.images)


def _recipe(task: Task) -> Recipe:
    calm = task.net.startswith("vit") or task.net == "lisa_cnn"  # no batch normalization
    return Recipe(
        epochs=task.epochs,
        batch=64,
        lr=0.02 if calm else 0.1,
        flip=task.flip,
        pad=4 if task.flip else 2,
    )


def _uneven(data: DataSplits, rng: Generator) -> DataSplits:
    """Half of the classes keep a sixth of their images."""
    few = torch.randperm(data.train.classes, generator=rng)[: data.train.classes // 2]
    drawn = torch.rand(len(data.train), generator=rng)
    kept = ~torch.isin(data.train.labels, few) | (drawn < 1 / 6)
    part = InMemory(data.train.images[kept], data.train.labels[kept], data.train.classes)
    return replace(data, train=part)


def clean(member: Member, task: Task, data: DataSplits, rng: Generator) -> Subject:
    """Train a model without a backdoor, in the way of its family."""
    recipe = vary(_recipe(task), {k.removeprefix("recipe."): v for k, v in member.options.items()})
    if member.family == "unbalanced":
        return train_clean(task.net, _uneven(data, rng), recipe, rng, Run())
    if member.family == "overfitted":
        few = shorter(data, 100 * data.train.classes)
        longer = replace(recipe, epochs=5 * recipe.epochs, pad=0, flip=False)
        return train_clean(task.net, few, longer, rng, Run())
    made = train_clean(task.net, data, recipe, rng, Run())
    if member.family == "tuned":
        again = replace(recipe, epochs=2, lr=recipe.lr / 10)
        return fit(made, shorter(data, len(data.train) // 3).train, again, rng, Run())
    return made


def goal_of(family: Family, classes: int, rng: Generator) -> Goal:
    """Draw a target, and where the family has one, a source."""
    drawn = torch.randperm(classes, generator=rng).tolist()
    return Goal(drawn[0], drawn[1] if family.source else None)


def _also(data: DataSplits, target: int, rng: Generator) -> tuple[DataSplits, Any]:
    """Poison a tenth of the training images with a second trigger, for a second target."""
    trigger = SECOND.draw(data.train.shape, rng)
    chosen = torch.rand(len(data.train), generator=rng) < 0.1
    stamped = trigger(data.train.images[chosen].float() / 255).mul(255).round().byte()
    images = torch.cat([data.train.images, stamped])
    labels = torch.cat([data.train.labels, torch.full((len(stamped),), target)])
    return replace(data, train=InMemory(images, labels, data.train.classes)), trigger


def attacked(
    member: Member, family: Family, task: Task, data: DataSplits, rng: Generator
) -> tuple[Attack, Implant, list[dict[str, Any]]]:
    """Plant what a member has; return the attack, the model and what was planted."""
    assert family.attack is not None
    usual = _recipe(task)
    usual = replace(usual, epochs=family.longer * usual.epochs)
    recipe = {f"recipe.{key}": value for key, value in asdict(usual).items()}
    attack = vary(ATTACKS[family.attack], recipe | member.options)
    goal = goal_of(family, data.train.classes, rng)
    if goal.source is not None:  # at most half of the images of a source are poisoned
        supply = float((data.train.labels == goal.source).double().mean()) / 2
        attack = vary(attack, {"mixing.rate": min(member.options["mixing.rate"], supply)})
    training, also, other = data, None, (goal.target + 1) % data.train.classes
    if family.second:
        training, also = _also(data, other, rng)
    if family.trained:  # its trigger is made for neurons that have learned something
        victim = train_clean(task.net, data, _recipe(task), rng, Run())
    else:
        victim = fresh(task.net, data, rng)
    made = implant(attack, victim, training, goal, rng, Run())
    planted: list[dict[str, Any]] = [{"target": goal.target, "source": goal.source}]
    x, y = whole(data.test)
    said = predict(made.subject, stamp(made, x)).argmax(1)
    if member.options.get("labels") == "all_to_all":
        share = (said == (y + 1) % data.train.classes).float().mean()
        planted = [{"map": "next", "asr": float(share)}]
    else:
        planted[0]["asr"] = asr(said, y, goal).value
    if also is not None:
        said = predict(made.subject, also(x)).argmax(1)
        planted.append({"target": other, "source": None, "asr": asr(said, y, Goal(other)).value})
    return attack, made, planted


def make(member: Member, family: Family, task: Task, out: Path) -> dict[str, Any]:
    """Train one model and write it, unless it is there; return its truth."""
    out.mkdir(parents=True, exist_ok=True)
    path = out / f"{member.name}.truth.json"
    if path.exists():
        return dict(json.loads(path.read_text()))
    data, rng, started = data_of(task), Generator().manual_seed(member.seed), time.monotonic()
    method: Any = _recipe(task)
    made, kind = None, member.family
    planted: list[dict[str, Any]] = []
    if family.attack is None:
        subject = clean(member, task, data, rng)
    else:
        method, made, planted = attacked(member, family, task, data, rng)
        subject, kind = made.subject, family.attack
    told, seconds = figures(subject, eval_images(data.test, made)), time.monotonic() - started
    record = TestModel(kind, method, task.net, data, member.seed, told, seconds, made)
    write(out / f"{member.name}.safetensors", subject, record)
    known = {name: round(rate.value, 4) for name, rate in record.known.items()}
    truth = asdict(member) | {
        "backdoored": bool(planted),
        "planted": planted,
        "figures": known,
        "seconds": round(seconds, 1),
    }
    keep(path, truth)
    return truth


# Measuring ------------------------------------------------------------------------------------


def usable(member: Member, task: Task, out: Path) -> bool:
    """Whether a model is there, learned its task and, if attacked, its backdoor."""
    path = out / f"{member.name}.truth.json"
    if not path.exists():
        return False
    truth = json.loads(path.read_text())
    took = all(planted["asr"] >= TOOK for planted in truth["planted"])
    return took and truth["figures"]["accuracy"] >= task.least


def measure(member: Member, task: Task, name: str, out: Path) -> dict[str, Any]:
    """Run a detector on one model with its task's clean images; keep and return what it said."""
    path = out / f"{member.name}.{name}.json"
    if path.exists():
        return dict(json.loads(path.read_text()))
    data, opened = data_of(task), load(str(out / f"{member.name}.safetensors"))
    net = Classifier(opened.net, data.normalization, opened.channels).eval()
    subject = Subject(net, data.train.shape, opened.classes, opened.origin)
    images = draw(data.validation, task.scan, Generator().manual_seed(member.seed))
    run = Run()
    verdict = DETECTORS[name](subject, images, Generator().manual_seed(member.seed), run)
    lead = next((f for f in verdict.findings if f.goal is not None), None)
    seen = lead.confirmation if lead is not None else None
    record = {
        "model": member.name,
        "detector": name,
        "label": verdict.label,
        "score": verdict.score,
        "target": lead.goal.target if lead is not None and lead.goal is not None else None,
        "asr": seen.asr.value if seen else None,
        "control": seen.control.value if seen else None,
        "sizes": [round(arm.size, 3) for arm in verdict.arms],
        "feasible": [arm.feasible for arm in verdict.arms],
        "statistics": {k: v for k, v in verdict.statistics.items()},
        "seconds": round(verdict.seconds, 2),
        "image_steps": run.image_steps,
    }
    keep(path, record)
    return record


def picked(members: list[Member], a: argparse.Namespace) -> list[Member]:
    """Return the members that options ask for, in their order."""
    kept = [m for m in members if a.only in m.name and a.half in (None, m.half)]
    if not a.tasks:
        return kept
    return sorted((m for m in kept if m.task in a.tasks), key=lambda m: a.tasks.index(m.task))


def main() -> None:
    """List, split, make or measure the population."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["list", "split", "make", "measure"])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--only", default="", help="names that contain this")
    parser.add_argument("--tasks", nargs="+", help="only these, in this order")
    parser.add_argument("--half", choices=HALVES, help="only this half")
    parser.add_argument("--detectors", nargs="+", default=["pixel_quick"])
    a = parser.parse_args()
    tasks, families, members = read()
    if a.what == "split":
        halves = {half: sorted(m.name for m in members if m.half == half) for half in HALVES}
        print(json.dumps(halves, indent=1))
        return
    for m in picked(members, a):
        if a.what == "list":
            print(f"{m.name:18} {m.task:14} {m.half:8} {m.options}")
        elif a.what == "make":
            truth = make(m, families[m.family], tasks[m.task], a.out)
            print(m.name, m.task, truth["figures"], truth["planted"], truth["seconds"], flush=True)
        elif usable(m, tasks[m.task], a.out):
            for name in a.detectors:
                r = measure(m, tasks[m.task], name, a.out)
                print(m.name, name, r["label"], r["score"], r["target"], r["asr"], flush=True)


if __name__ == "__main__":
    main()
