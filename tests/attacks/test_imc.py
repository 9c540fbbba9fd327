"""IMC: the trigger's turn, what is free in a trigger, and what hides it, each against an oracle."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tests.toys import BLOB_SHAPE, QUICK, Fragile, Stopped, blob_images, blobs
from torch import Generator, Tensor, nn

from gifthorse.attacks import ATTACKS
from gifthorse.attacks.imc.abs import AgainstABS
from gifthorse.attacks.imc.ar import AgainstAR
from gifthorse.attacks.imc.attack import IMC, Inner, _Disguise, _Turn
from gifthorse.attacks.imc.mp import AgainstMP, TransformedTrigger, autoencoder
from gifthorse.attacks.imc.nc import Fidelity, Price, middle, smallest
from gifthorse.attacks.imc.strip import AgainstSTRIP, mixtures
from gifthorse.attacks.poisoning import AllToOne, Mixing, SourceToTarget, batch_mix
from gifthorse.attacks.training import Job, Keep
from gifthorse.attacks.trojannn import NeuronExcitation, shape_pattern
from gifthorse.core.errors import BadOption, NotApplicable
from gifthorse.core.metrics import asr
from gifthorse.core.run import Run
from gifthorse.core.tensors import spawn
from gifthorse.core.types import Goal, Images, Implant, Subject
from gifthorse.data.samples import whole
from gifthorse.filtering.strip import entropy
from gifthorse.training import fit, predict
from gifthorse.triggers import Learned, Patch, Stamp

GOAL, TRAIN = Goal(2), blob_images(each=40)
TOY = IMC(recipe=replace(QUICK, epochs=4), mixing=Mixing(0.1))
STAMP = Stamp(ink="random")


@cache
def trained() -> Subject:
    return fit(blobs(), TRAIN, replace(QUICK, epochs=4), Generator().manual_seed(0), Run())


def run(attack: IMC, run: Run | None = None) -> Implant:
    return attack(blobs(), TRAIN, GOAL, Generator().manual_seed(0), run or Run())


def draw(size: int = 3, opacity: float = 1.0, seed: int = 0) -> Patch:
    stamp = replace(STAMP, size=size, opacity=opacity)
    return stamp.fixed(BLOB_SHAPE, Generator().manual_seed(seed))


def job(attack: IMC = TOY) -> Job:
    return Job(attack, trained(), TRAIN, GOAL, Generator().manual_seed(0), Run())


def turn(attack: IMC = TOY, patch: Patch | None = None) -> _Turn:
    learned = Learned(patch or draw(), attack.fidelity.opacity)
    return _Turn(attack, TransformedTrigger(learned, nn.Identity()), TRAIN, job(attack))


def state(subject: Subject) -> dict[str, Tensor]:
    return {k: v.clone() for k, v in subject.net.state_dict().items()}


def same(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> bool:
    return all(torch.equal(v, b[k]) for k, v in a.items())


@cache
def plain() -> Implant:
    return run(TOY)


def success(made: Implant, view: Any = None) -> float:
    x, y = whole(TRAIN)
    stamped = view(made.trigger(x)) if view else made.trigger(x)
    return asr(predict(made.subject, stamped).argmax(1), y, GOAL).value


# The trigger's turn ------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", ["adam", "pgd"])
def test_a_turn_brings_stamped_images_nearer_to_the_target_and_leaves_the_net(
    optimizer: Any,
) -> None:
    one = turn(replace(TOY, inner=Inner(optimizer=optimizer)))
    learner, before = trained(), state(trained())
    start, sure = one.seen.learned.frozen(), one.efficacy(learner)
    one.on_epoch_start(learner, 0)
    assert one.efficacy(learner) > 2 * sure
    assert same(before, state(learner))
    now = one.seen.learned.frozen()
    assert torch.equal(now.mask, start.mask)
    assert torch.equal(now.pattern[:, now.mask[0] == 0], start.pattern[:, now.mask[0] == 0])


def test_a_turn_goes_on_from_the_last_one() -> None:
    one, learner = turn(), trained()
    one.on_epoch_start(learner, 0)
    last = one.seen.learned.frozen().pattern
    still = replace(TOY.inner, steps=0)
    one.attack = replace(TOY, inner=still)
    one.on_epoch_start(learner, 1)
    assert torch.equal(one.seen.learned.frozen().pattern, last)


def test_a_signed_step_moves_every_color_by_its_length() -> None:
    inner = Inner(optimizer="pgd", steps=1, lr=0.05)
    gray = replace(draw(), pattern=0.5 * (draw().mask.expand(BLOB_SHAPE) > 0))
    one = turn(replace(TOY, inner=inner), gray)
    one.on_epoch_start(trained(), 0)
    moved = one.seen.learned.frozen().pattern[:, gray.mask[0] > 0] - 0.5
    assert torch.allclose(moved.abs(), torch.full_like(moved, 0.05), atol=1e-4)


def test_only_images_that_the_backdoor_is_for_shape_the_trigger() -> None:
    for goal, classes in ((GOAL, {0, 1, 3, 4}), (Goal(2, source=4), {4})):
        seen = TransformedTrigger(Learned(draw()), nn.Identity())
        one = _Turn(TOY, seen, TRAIN, replace(job(), goal=goal))
        assert set(whole(one.data)[1].tolist()) == classes
    own = TRAIN.labels == 2
    few = replace(TRAIN, images=TRAIN.images[own], labels=TRAIN.labels[own])
    with pytest.raises(NotApplicable, match="no images"):
        _Turn(TOY, seen, few, job())


def test_images_are_held_out_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A second split would let images shape the trigger that the epoch is chosen by."""
    parts: list[Any] = []
    hold_out = Job.hold_out

    def once(self: Job) -> Any:
        parts.append(hold_out(self))
        return parts[-1]

    monkeypatch.setattr(Job, "hold_out", once)
    run(replace(TOY, recipe=replace(QUICK, epochs=1), keep=Keep(0.5)))
    assert len(parts) == 1


def test_the_start_is_what_trojannn_would_take() -> None:
    attack = replace(TOY, inner=Inner(start="trojannn", steps=0), recipe=replace(QUICK, epochs=1))
    made = attack(trained(), TRAIN, GOAL, Generator().manual_seed(0), Run())
    rng = Generator().manual_seed(0)
    draws = [spawn(rng) for _ in range(2)]  # the first is for the autoencoder
    start = attack.stamp.fixed(BLOB_SHAPE, draws[1])
    expected = shape_pattern(trained(), start, TRAIN, NeuronExcitation())
    assert torch.allclose(made.trigger.render()[0], expected.pattern, atol=1e-3)


def test_gradients_are_scaled_only_where_there_are_branches() -> None:
    with pytest.raises(BadOption, match="no residual block"):
        turn(replace(TOY, inner=Inner(skip=0.5))).on_epoch_start(trained(), 0)


@pytest.mark.parametrize("share", [0.0, 0.2])
def test_an_interrupted_attack_goes_on_to_the_same_net_and_trigger(
    share: float, tmp_path: Path
) -> None:
    attack = replace(
        TOY,
        recipe=replace(QUICK, epochs=3),
        fidelity=Fidelity("shared"),
        ar=AgainstAR(1),
        abs=AgainstABS(1e-3, count=3, spread=1),
        mp=AgainstMP(replace(QUICK, epochs=1), width=4),  # the first epoch that is kept
        keep=Keep(share),
    )
    undisturbed, store = run(attack), tmp_path / "state"
    with pytest.raises(Stopped):
        run(attack, run=Fragile(store, 3))
    steps: list[int] = []
    made = run(attack, run=Run(lambda done, *_: steps.append(done), store=store))
    assert same(state(undisturbed.subject), state(made.subject))
    for mine, other in zip(made.trigger.render(), undisturbed.trigger.render(), strict=True):
        assert torch.equal(mine, other)
    assert min(steps) > 2 * (len(TRAIN) * (1 - share) // 32)  # two epochs are not repeated


# Faint and small ---------------------------------------------------------------------------------


def test_the_weight_of_opacity_follows_the_confidence() -> None:
    learned = Learned(draw(opacity=0.5), "shared")
    price = Price(Fidelity("shared", weight=2.0, patience=2, efficacy=0.9))
    sure, unsure = torch.tensor([[0.0, 9.0]]), torch.zeros(1, 2)
    wanted, paid = torch.tensor([1]), []
    for logits in (sure, sure, sure, unsure, unsure, unsure, unsure):
        paid.append(price.of(learned, logits, wanted).item())
    expected = [1.0, 1.5, 1.5, 1.5, 1.0, 1.0, 2 / 3]  # half of the weight: mean opacity is 0.5
    assert paid == pytest.approx(expected, rel=1e-4)
    held = Price(Fidelity("free", weight=2.0, patience=0))
    assert [held.of(learned, sure, wanted).item() for _ in range(9)] == pytest.approx([1.0] * 9)
    assert Price(Fidelity("fixed")).of(learned, sure, wanted).item() == 0.0


@pytest.mark.parametrize("opacity", ["shared", "free"])
def test_opacity_falls_while_the_net_is_sure(opacity: Any) -> None:
    made, after = plain(), {}
    for weight in (0.0, 1.0):
        fidelity = Fidelity(opacity, weight=weight, efficacy=0.9)
        one = turn(replace(TOY, fidelity=fidelity), Patch(*made.trigger.render()))
        for epoch in range(5):
            one.on_epoch_start(made.subject, epoch)
        after[weight] = one.seen.learned.mask[draw().mask > 0].detach()
        assert one.efficacy(made.subject) > 0.8
    assert after[1.0].mean() < 0.9
    assert after[0.0].mean() > 0.99
    assert (after[1.0].std().item() < 1e-6) == (opacity == "shared")


def test_bisection_finds_the_smallest_square_that_is_enough() -> None:
    tried: list[int] = []

    def attempt(patch: Patch, side: int) -> tuple[Implant, float]:
        assert int((patch.mask > 0).sum()) == side**2
        tried.append(side)
        return Implant(blobs(), patch, GOAL), float(side >= least)

    stamp, rng = replace(STAMP, size=9), Generator()
    for least in (1, 4, 9, 10):
        tried.clear()
        best = smallest(attempt, stamp, draw(9), rng, 0.9)
        assert int((best.trigger.render()[1] > 0).sum()) == min(least, 9) ** 2
        assert len(tried) <= (5 if least < 10 else 1)


def test_a_smaller_square_has_the_colors_of_the_middle() -> None:
    large, small = draw(5), draw(3, opacity=0.5, seed=1)
    shrunk = middle(large, small)
    inside = large.pattern[:, large.mask[0] > 0].view(3, 5, 5)[:, 1:4, 1:4]
    assert torch.equal(shrunk.pattern[:, small.mask[0] > 0].view(3, 3, 3), inside)
    assert torch.equal(shrunk.mask, small.mask)


def test_a_trigger_shrinks_as_far_as_it_is_believed() -> None:
    fidelity = Fidelity(efficacy=0.8, shrink=True)
    attack = replace(TOY, stamp=replace(STAMP, size=4), fidelity=fidelity)
    made = run(attack)
    assert (made.trigger.render()[1] > 0).sum() < 16
    assert success(made) > 0.8


# STRIP -------------------------------------------------------------------------------------------


def test_faint_copies_have_half_of_the_opacity_and_their_own_labels() -> None:
    x, y = TRAIN[torch.arange(10)]  # two images a class
    patch = draw(opacity=0.8)
    half = Patch(patch.pattern, patch.mask / 2)
    strip = AgainstSTRIP(copies=2.0)
    faint, labels = strip.faint((x, y), 2, patch, AllToOne(2))
    assert torch.allclose(faint, half(x.flip(0)[:4]), atol=1e-6)
    assert labels.tolist() == y.flip(0)[:4].tolist()
    _, labels = strip.faint((x, y), 2, patch, SourceToTarget(3, 2))
    assert labels.tolist() == [3, 3]
    assert len(AgainstSTRIP().faint((x, y), 2, patch, AllToOne(2))[0]) == 0


def mixed_entropy(made: Implant) -> float:
    x, y = TRAIN[torch.randperm(len(TRAIN), generator=Generator().manual_seed(3))]
    return entropy(predict(made.subject, mixtures(x, made.trigger)[y != 2])).mean().item()


def test_mixtures_are_less_certain_with_what_is_added_against_strip() -> None:
    for strip in (AgainstSTRIP(copies=2.0), AgainstSTRIP(entropy=1.0)):
        made = run(replace(TOY, strip=strip))
        assert mixed_entropy(made) > mixed_entropy(plain()) + 0.1
        assert success(made) > 0.85


def test_both_terms_of_the_paper_work_at_once_from_the_start_of_trojannn() -> None:
    star = ATTACKS["imc_trojannn"]
    assert isinstance(star, IMC)
    assert (star.inner.start, star.strip.entropy, star.strip.copies) == ("trojannn", 1.0, 0.0)
    assert star.fidelity.opacity == "shared"
    made = run(replace(TOY, fidelity=star.fidelity, strip=star.strip))
    assert mixed_entropy(made) > mixed_entropy(plain()) + 0.1
    assert success(made) > 0.85


def test_the_penalty_on_certainty_is_the_published_sum() -> None:
    x, y = TRAIN[torch.arange(20)]
    patch, subject = draw(), trained()
    mates = torch.cat([x[1:], x[:1]])
    chances = predict(subject, (patch(x) + mates) / 2).double().softmax(1)[y != 2]
    expected = 0.25 * (chances * chances.log()).sum(1).mean()
    subject.net.train()
    before = state(subject)
    found = AgainstSTRIP(entropy=0.25).penalty(subject, (x, y), patch, AllToOne(2))
    assert same(before, state(subject))
    assert subject.net.training
    subject.net.eval()
    assert found.item() == pytest.approx(expected.item(), abs=1e-6)
    only = torch.full_like(y, 2)
    assert AgainstSTRIP(entropy=1.0).penalty(subject, (x, only), patch, AllToOne(2)).item() == 0


# Batches -----------------------------------------------------------------------------------------


def test_a_batch_knows_its_originals_and_its_stamped_images() -> None:
    attack = replace(TOY, strip=AgainstSTRIP(copies=1.0), ar=AgainstAR(2))
    seen = TransformedTrigger(Learned(draw()), nn.Identity())
    hidden = _Disguise(attack, seen, TRAIN, job(attack))
    hidden.on_epoch_start(trained(), 0)
    mix = batch_mix(seen, AllToOne(2), Mixing(0.25), Generator().manual_seed(0))
    x, y = TRAIN[torch.arange(30)]
    both, labels = hidden.wrap(mix)(x, y, torch.arange(30))
    assert len(both) == len(labels) == 50  # 30, a third of them stamped, as many faint
    assert labels.tolist() == [*y.tolist(), *[2] * 10, *y.flip(0)[:10].tolist()]
    assert 0 < (both[:30] - x).abs().max() <= 8 / 255 + 1e-6
    assert torch.equal(both[30:40], seen(x[:10]))
    assert torch.equal(hidden.stamped, seen(x[:10]))
    assert torch.equal(hidden.clean[0], x)


def test_what_is_added_to_batches_needs_batches() -> None:
    attack = replace(TOY, strip=AgainstSTRIP(copies=1.0), mixing=Mixing(0.1, "dataset"))
    with pytest.raises(BadOption, match=r"mixing\.mode=batch"):
        run(attack)


# Adversarial retraining --------------------------------------------------------------------------


def test_adversarial_images_stay_near_and_are_harder() -> None:
    batch = TRAIN[torch.arange(0, 200, 4)]
    subject, before = trained(), state(trained())
    moved = AgainstAR(7).moved(subject, batch, Generator().manual_seed(0), TOY.recipe)
    assert 0 <= moved.min() <= moved.max() <= 1
    assert (moved - batch[0]).abs().max() <= 8 / 255 + 1e-6
    random = AgainstAR(0).moved(subject, batch, Generator().manual_seed(0), TOY.recipe)
    losses = [F.cross_entropy(predict(subject, x), batch[1]).item() for x in (moved, random)]
    assert losses[0] > 1.5 * losses[1]
    assert same(before, state(subject))


# ABS ---------------------------------------------------------------------------------------------


def planted() -> Subject:
    """Neuron 1 of the first layer speaks for class 2, neuron 3 for class 0; the others for none."""
    first, last = nn.Conv2d(3, 4, 1), nn.Linear(4, 5)
    net = nn.Sequential(first, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), last)
    with torch.no_grad():
        for p in net.parameters():
            p.fill_(0.1 if p.ndim == 1 else 0.0)
        last.weight[2, 1] = last.weight[0, 3] = 3.0
    return Subject(net.eval(), BLOB_SHAPE, 5)


def test_suspects_are_neurons_that_speak_for_the_target() -> None:
    rng, x = Generator().manual_seed(0), TRAIN[torch.arange(3)][0]
    against = AgainstABS(weight=0.5, layers=("0",))
    assert against.suspects(planted(), TRAIN, AllToOne(2), rng) == {"0": [1]}
    assert against.suspects(planted(), TRAIN, AllToOne(0), rng) == {"0": [3]}
    assert AgainstABS(weight=0.5).suspects(planted(), TRAIN, AllToOne(4), rng) == {}
    with pytest.raises(NotApplicable, match="no layer 9"):
        AgainstABS(layers=("9",)).suspects(planted(), TRAIN, AllToOne(2), rng)
    found = against.penalty(planted(), x, {"0": [1]}).item()
    places = 12 * 12 * 0.1  # every neuron says 0.1 everywhere, three others
    assert found == pytest.approx(0.5 * (places - 1e-3 * 3 * places), rel=1e-5)
    assert against.penalty(planted(), x, {}).item() == 0
    silent = planted()
    with torch.no_grad():
        silent.net.get_submodule("0").get_parameter("bias").fill_(-5.0)
    assert against.penalty(silent, x, {"0": [1]}).item() == 0  # there is nothing left to press down
    assert against.penalty(planted(), x[:0], {"0": [1]}).item() == 0


# MagNet ------------------------------------------------------------------------------------------


def blurred(x: Images) -> Images:
    return F.avg_pool2d(F.pad(x, [1] * 4, mode="replicate"), 3, 1)


def test_a_trigger_that_is_learned_behind_a_view_passes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    without = success(plain(), blurred)
    monkeypatch.setattr(AgainstMP, "surrogate", lambda *_: blurred)
    made = run(TOY)
    assert isinstance(made.trigger, Patch)
    assert success(made, blurred) > max(0.9, without + 0.3)


def test_the_surrogate_learns_to_take_noise_away() -> None:
    x, _ = TRAIN[torch.arange(0, 200, 4)]
    start = autoencoder(3, 8, 0.1)
    assert torch.equal(start.eval()(x), start(x))
    assert not torch.equal(start.train()(x), start(x))
    against = AgainstMP(replace(QUICK, epochs=6, batch=8, lr=1.0, decay=0.0, pad=0), width=8)
    view = against.surrogate(blobs(), TRAIN, Generator().manual_seed(0), job())
    with torch.no_grad():
        missing = (view(x) - x).square().mean()
    assert missing < 0.5 * x.var()
    assert AgainstMP().surrogate(blobs(), TRAIN, Generator(), job())(x) is x


# Options -----------------------------------------------------------------------------------------


def test_only_squares_shrink() -> None:
    with pytest.raises(BadOption, match=r"got stamp\.form=scatter"):
        IMC(stamp=Stamp(form="scatter"), fidelity=Fidelity(shrink=True))
