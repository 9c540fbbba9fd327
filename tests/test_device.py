"""Everything that runs a net runs it on a card: on the stand-in here, and on a real one.

The smallest toys and the fewest steps: what is looked at is where tensors are. On the stand-in
(tests/standin.py) results must also be those of the processor, since it computes them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.contract import test_attacks as attacks
from tests.contract import test_defenses as defenses
from tests.contract import test_inverters as inverters
from tests.standin import standin
from tests.toys import (
    BLOB_CLASSES,
    BLOB_SHAPE,
    QUICK,
    WIRED_CLASSES,
    Wired,
    blob_images,
    checker,
    wired,
    wired_images,
)
from torch import Generator, Tensor, nn

from gifthorse import analysis
from gifthorse.analysis.attribution import saliency
from gifthorse.analysis.transfer import Transfer
from gifthorse.attacks import ATTACKS
from gifthorse.bench.judge import evaluate as judge_bench
from gifthorse.bench.outcome import DefenseKind
from gifthorse.bench.protocol import EvalConfig
from gifthorse.core.errors import Incomplete
from gifthorse.core.options import describe, vary
from gifthorse.core.run import Run
from gifthorse.core.types import Goal, Implant, RunRecord, Subject
from gifthorse.data import Gallery
from gifthorse.data.samples import Subset, labels_of, near, whole
from gifthorse.detection import DETECTORS
from gifthorse.filtering import FILTERS
from gifthorse.inversion import INVERTERS
from gifthorse.remedies import REMEDIES
from gifthorse.report import WRITERS
from gifthorse.training import evaluate, fit, predict
from gifthorse.workflows.analyze import TriggerAnalysis
from gifthorse.workflows.compare import ComparisonConfig, compare
from gifthorse.workflows.detect import detect
from gifthorse.workflows.filter import screen
from gifthorse.workflows.opening import Inputs
from gifthorse.workflows.prepare import Prepared, prepare
from gifthorse.workflows.repair import repair, spread
from gifthorse.workflows.scan import Request, illustrated, scan

TERMS = EvalConfig(pairs=12)
# With few steps on a tiny net, whether these grow to thousands turns on rounding.
TURNING = {"adversarial_retraining", "fst", "ft_sam", "nad"}
TRAINED = 0.05  # of logits: what rounding in another order comes to over a training
real = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.fixture(
    params=["standin", pytest.param("cuda", marks=[pytest.mark.gpu, real])],
)
def card(request: pytest.FixtureRequest) -> Iterator[str]:
    """Have a card; tells which."""
    with standin() if request.param == "standin" else nullcontext():
        yield request.param


def seed() -> Generator:
    return Generator().manual_seed(0)


def moved(subject: Subject) -> Subject:
    """The same net on the card."""
    return replace(subject, net=deepcopy(subject.net).to("cuda"))


def tensors(thing: Any, seen: set[int] | None = None) -> Iterator[Tensor]:
    """All tensors in a result, but those of the nets of subjects."""
    seen = set() if seen is None else seen
    if id(thing) in seen or isinstance(thing, Subject | str | int | float | Generator | type):
        return
    seen.add(id(thing))
    if isinstance(thing, Tensor):
        yield thing
        return
    if isinstance(thing, nn.Module):
        thing = thing.state_dict()
    elif is_dataclass(thing):
        thing = [getattr(thing, field.name) for field in fields(thing)]
    elif hasattr(thing, "__dict__"):
        thing = vars(thing)
    inside = thing.values() if isinstance(thing, Mapping) else thing
    for one in inside if isinstance(inside, Iterable) else ():
        yield from tensors(one, seen)


def here(thing: Any) -> None:
    """A result is on the CPU."""
    assert {t.device.type for t in tensors(thing)} <= {"cpu"}


def test_a_trigger_on_the_card_would_be_noticed(card: str) -> None:
    with pytest.raises(AssertionError):
        here([{"pattern": torch.zeros(1, device="cuda")}])


# Registries -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(ATTACKS))
def test_an_attack(name: str, card: str) -> None:
    made = attack(name, moved)
    assert made.subject.device.type == "cuda"
    here(made)
    x = whole(blob_images(each=2, seed=1))[0]
    stamped = made.trigger(x)
    assert stamped.device.type == "cpu"
    assert made.trigger(x.to("cuda")).device.type == "cuda"
    here((made.trigger.render(), made.trigger.shuffled(seed())))
    assert made.trigger.shuffled(seed())(x.to("cuda")).device.type == "cuda"
    here(made.trigger)
    if card == "standin":
        alone = attack(name, lambda subject: subject)
        assert torch.allclose(predict(made.subject, x), predict(alone.subject, x), atol=TRAINED)


def attack(name: str, place: Callable[[Subject], Subject]) -> Any:
    known = describe(ATTACKS[name])
    short = {key: value for key, value in SHORT.items() if key in known}
    method = vary(attacks.toy(name), short)
    victim = attacks.victim(name)
    return method(place(victim), blob_images(each=20), Goal(2), seed(), Run())


SHORT: dict[str, object] = {
    "recipe.epochs": 1, "masking.epochs": 1, "search.epochs": 1, "mp.recipe.epochs": 1,
    "rounds": 1, "wait": 2, "steps": 3, "passes": 1, "mixing.rate": 0.2,
    "inverter.config.rounds": 5,
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(INVERTERS))
def test_an_inverter(name: str, card: str) -> None:
    brief = {"steps": 5, "start": 5, "solve": 3, "inner": 2}
    known = describe(INVERTERS[name])
    method = vary(inverters.inverter(name), {k: v for k, v in brief.items() if k in known})
    sizes = []
    for place in (moved, lambda subject: subject):
        goals = [Goal(k) for k in range(4)]
        inversion = method(place(wired(2)), wired_images(6), goals, seed())
        for _ in range(2):
            inversion.step(torch.arange(4))
        here((inversion.best, inversion.progress, inversion.done))
        kept = inversion.state()
        here(kept)
        again = method(place(wired(2)), wired_images(6), goals, seed())
        again.restore(kept)
        again.step(torch.arange(2))
        x = whole(wired_images(2))[0]
        here([c.trigger(x) for c in again.best])
        sizes.append([c.size for c in again.best])
    assert sizes[0] == pytest.approx(sizes[1], rel=0.1, abs=0.2)


@pytest.mark.parametrize("name", sorted(DETECTORS))
def test_a_detector(name: str, card: str) -> None:
    method, found = defenses.brief("detector", name), []
    for place in (moved, lambda subject: subject):
        verdict = method(place(wired(2)), wired_images(6), seed(), Run())
        here(verdict)
        found.append(verdict)
    there, alone = found
    assert [a.goal for a in there.arms] == [a.goal for a in alone.arms]
    if card == "standin":
        assert math.isclose(there.score, alone.score, rel_tol=1e-2, abs_tol=1e-3)
        assert there.label == alone.label


@pytest.mark.parametrize("name", sorted(FILTERS))
def test_a_filter(name: str, card: str) -> None:
    method, scores = defenses.brief("filter", name), []
    for place in (moved, lambda subject: subject):
        got = method(place(wired(2)), wired_images(5, 1), wired_images(5, 2), seed(), Run())
        here(got)
        scores.append(got)
    assert torch.allclose(scores[0], scores[1], rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("name", sorted(REMEDIES))
def test_a_remedy(name: str, card: str) -> None:
    method, x, logits = defenses.brief("remedy", name), whole(wired_images(2, 3))[0], []
    for place in (moved, lambda subject: subject):
        made = method(place(wired(2)), wired_images(8), seed(), Run())
        logits.append(predict(made, x))
        assert made.device.type == ("cuda" if place is moved else "cpu")
    assert logits[0].device.type == "cpu"
    if card == "standin" and name not in TURNING:
        assert torch.allclose(logits[0], logits[1], rtol=1e-2, atol=TRAINED)


# What surrounds them ------------------------------------------------------------------------------


def test_predictions_come_back_where_the_images_were(card: str) -> None:
    subject, clean = moved(wired(2)), wired_images(3)
    x = whole(clean)[0]
    assert predict(subject, x).device.type == "cpu"
    assert predict(subject, x.to("cuda")).device.type == "cuda"
    here(evaluate(subject, clean))
    assert torch.equal(evaluate(subject, clean), predict(wired(2), x).argmax(1))


def test_samples_stay_and_their_batches_come(card: str) -> None:
    clean, subject = wired_images(3), moved(wired(2))
    seen = near(Subset(clean, torch.tensor([4, 1])), subject)
    x, y = seen[torch.tensor([1])]
    assert (x.device.type, y.device.type) == ("cuda", "cuda")
    assert torch.equal(x.cpu(), clean[torch.tensor([1])][0])
    assert near(seen, subject) is seen
    assert near(clean, wired(2)) is clean
    here((seen, labels_of(seen)))
    assert labels_of(seen).tolist() == clean.labels[[4, 1]].tolist()


def test_a_training_goes_on_where_it_stopped(card: str, tmp_path: Path) -> None:
    data, recipe = blob_images(each=10), replace(QUICK, epochs=2, pad=1)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(), nn.Flatten())
    start = Subject(nn.Sequential(net, nn.Linear(400, BLOB_CLASSES)), BLOB_SHAPE, BLOB_CLASSES)

    def trained(budget: int | None) -> Subject:
        run = Run(budget=budget, store=tmp_path / f"state{budget is None}")
        return fit(moved(start), data, recipe, seed(), run.keyed(recipe, start, data, seed()))

    straight = trained(None)
    with pytest.raises(Incomplete):
        trained(len(data) // 2)
    (tmp_path / "stateTrue").write_bytes((tmp_path / "stateFalse").read_bytes())
    resumed = trained(None)
    assert resumed.device.type == "cuda"
    for one, other in zip(
        straight.net.state_dict().values(), resumed.net.state_dict().values(), strict=True
    ):
        assert torch.allclose(one, other, atol=1e-4)


def test_what_is_wired_in_16_bits_is_searched_alike(card: str) -> None:
    sizes = []
    for bf16 in (False, True):
        method = vary(INVERTERS["pixel"], {"config.bf16": bf16, "config.rounds": 40, "patience": 3})
        inversion = method(moved(wired(2)), wired_images(6), [Goal(2), Goal(0)], seed())
        for _ in range(40):
            inversion.step(torch.arange(2))
        sizes.append([c.size for c in inversion.best])
    assert sizes[0] == pytest.approx(sizes[1], rel=0.3, abs=4)


@pytest.mark.parametrize("kind", ["remedy", "filter", "detector"])
def test_a_cell_of_the_bench(kind: DefenseKind, card: str) -> None:
    name = {"remedy": "fine_tuning", "filter": "strip", "detector": "neural_cleanse_quick"}[kind]
    method, outcomes = defenses.brief(kind, name), []
    for place in (moved, lambda subject: subject):
        made = Implant(place(wired(2)), checker(), Goal(2))
        outcome = judge_bench(
            made, method, defenses.DATA, seed(), Run(), kind=kind, evaluation=TERMS
        )
        here(outcome)
        outcomes.append(outcome)
    assert outcomes[0].before == outcomes[1].before
    if card == "standin":
        there, alone = (
            {k: r.value for k, r in one.after.items() if r is not None} for one in outcomes
        )
        assert there == pytest.approx(alone, rel=1e-2, abs=1e-2)


def received(place: Callable[[nn.Module], nn.Module]) -> Prepared:
    gallery = Gallery(wired_images(8), "file")
    return prepare(place(Wired(2)).eval(), WIRED_CLASSES, gallery)


def on_card(net: nn.Module) -> nn.Module:
    return net.to("cuda")


def test_a_scan(card: str, tmp_path: Path) -> None:
    ran = RunRecord("test", 0, "cuda:0", 0.0, "", {})
    detectors = {
        n: defenses.brief("detector", n) for n in ("neural_cleanse_quick", "weight_signature")
    }
    got = received(on_card)
    assert got.subject.device.type == "cuda"
    report = illustrated(detect(got, detectors, seed(), Run()), got.subject)
    report = replace(report, run=ran)
    here(report)
    for ending, write in WRITERS.items():
        assert write(report), ending
    if card == "standin":
        alone = detect(received(lambda net: net), detectors, seed(), Run())
        assert [v.score for v in alone.verdicts] == pytest.approx(
            [v.score for v in report.verdicts], rel=1e-3
        )
        assert alone.label == report.label


def test_the_scan_of_a_file_says_where_it_ran(card: str) -> None:
    gift = Path(__file__).parents[1] / "examples" / "gift"
    inputs = Inputs(str(gift / "clean.npz"), limit=43, device="cuda")
    report = scan(str(gift / "gift.safetensors"), inputs, Request(detectors=("weight_signature",)))
    assert report.run is not None
    assert report.run.device == "cuda:0"
    here(report)


def test_a_repair(card: str) -> None:
    got = received(on_card)
    done = repair(
        got,
        defenses.brief("remedy", "fine_tuning"),
        seed(),
        Run(),
        known=[(checker(), Goal(2))],
        mirror=False,
    )
    assert done.subject.device.type == "cuda"
    here(done)
    inverter = vary(INVERTERS["pixel"], {"config.rounds": 2})
    here(spread(got.subject, done, inverter, seed(), Run()))


def test_images_are_screened(card: str) -> None:
    method = vary(FILTERS["strip"], {"partners": 8})
    here(screen(received(on_card), wired_images(5, 7), method, seed(), Run()))


def test_triggers_are_compared(card: str) -> None:
    plan = ComparisonConfig((Goal(2),), methods=("pixel", "neural_cleanse"), rounds=3, points=3)
    done = compare(moved(wired(2)), wired_images(8), plan, Run())
    here(done)


def test_a_trigger_is_analyzed(card: str) -> None:
    plan = TriggerAnalysis(permutations=5, draws=1, method="pca")
    case = plan(
        moved(wired(2)), wired_images(8), checker(), Goal(2), seed(), against=moved(wired())
    )
    here(case)
    alone = plan(wired(2), wired_images(8), checker(), Goal(2), seed(), against=wired())
    assert case.asr == alone.asr
    assert case.curves["model"][0].value == pytest.approx(alone.curves["model"][0].value)


def test_what_layers_give_and_what_becomes_of_features(card: str) -> None:
    subject, clean = moved(wired(2)), wired_images(8)
    gathered = analysis.collect(subject, clean)
    here(gathered)
    assert gathered.layers.keys() == analysis.collect(wired(2), clean).layers.keys()
    x = whole(clean)[0]
    here(saliency(subject, x, 2))
    for kind in ("fcn1", "bayes"):
        made = Implant(subject, checker(), Goal(2))
        plan = Transfer(
            tunings=("partial",), downstream=(kind,), recipe=replace(QUICK, epochs=1, batch=8)
        )
        assert plan(made, clean, wired_images(4, 1), seed(), Run()).keys() == {"partial", kind}
    rates = analysis.robustness(subject, checker(), Goal(2), clean)
    assert rates == analysis.robustness(wired(2), checker(), Goal(2), clean)
