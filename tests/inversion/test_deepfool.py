"""DeepFool's universal perturbation: against closed forms, a plain transcription, and itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from tests.toys import BANDS, SIDE, Bands, Doubles, band_images, bands
from torch import Generator, Tensor, nn

from gifthorse.core.errors import NotApplicable
from gifthorse.core.metrics import asr
from gifthorse.core.run import Run
from gifthorse.core.tensors import spawn
from gifthorse.core.types import Goal, Samples, Subject
from gifthorse.data.samples import InMemory, Subset, whole
from gifthorse.inversion.deepfool import DeepFoolInversion, DeepFoolUAP, deepfool
from gifthorse.training import predict
from gifthorse.triggers import Additive

ALL = torch.arange(BANDS)
GOALS = [Goal(k) for k in range(BANDS)]
SHAPE = (2, 3, 4)  # of the linear nets


class Linear(nn.Module):
    """Logits `W x + b`."""

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(weight), nn.Parameter(bias)

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ self.weight.T + self.bias


def linear(classes: int, rng: Generator, bias: Sequence[float] | None = None) -> Subject:
    """A random linear net."""
    weight = torch.randn(classes, 24, generator=rng)
    net = Linear(weight, torch.zeros(classes) if bias is None else torch.tensor(bias))
    return Subject(net.eval(), SHAPE, classes)


class Curved(Bands):
    """Bands whose pixels and logits go through waves, so that no step is exact."""

    def __init__(self, wave: float) -> None:
        super().__init__(2, plant=3.0)
        self.wave = wave
        rng = Generator().manual_seed(0)
        self.texture = nn.Parameter(torch.rand(1, SIDE, SIDE, generator=rng) * 12)
        self.mix = nn.Parameter(torch.randn(BANDS, BANDS, generator=rng))

    def forward(self, x: Tensor) -> Tensor:
        z = super().forward(x + 0.2 * torch.sin(self.texture * x))
        return z + self.wave * torch.sin(z @ self.mix)


def curved(wave: float = 0.5) -> Subject:
    """High waves make the steps wander, and blow up rounding as they go."""
    return Subject(Curved(wave).eval(), (1, SIDE, SIDE), BANDS)


def sweep(
    subject: Subject | None = None,
    clean: Samples | None = None,
    goals: Sequence[Goal] = GOALS,
    method: DeepFoolUAP = DeepFoolUAP(),  # noqa: B008
    seed: int = 0,
) -> DeepFoolInversion:
    rng = Generator().manual_seed(seed)
    inversion = method(subject or bands(2), clean or band_images(), goals, rng)
    assert isinstance(inversion, DeepFoolInversion)
    return inversion


def gray(label: int, classes: int) -> InMemory:
    """One gray image, far from black and from white."""
    return InMemory(torch.full((1, *SHAPE), 128, dtype=torch.uint8), torch.tensor([label]), classes)


# Closed forms ------------------------------------------------------------------------------------


@pytest.mark.parametrize("overshoot", [0.0, 0.02, 0.2])
@pytest.mark.parametrize(
    ("classes", "bias"), [(2, [0.0, 3.0]), (5, [0.0, 3.0, -99.0, -99.0, -99.0])]
)
def test_one_image_of_a_linear_net_is_projected_onto_the_boundary(
    classes: int, bias: list[float], overshoot: float, rng: Generator, double: None
) -> None:
    subject = linear(classes, rng, bias)
    x = whole(Doubles(gray(1, classes)))[0]
    z = subject(x)[0]
    assert z.argmax() == 1
    net = subject.net
    assert isinstance(net, Linear)
    away = net.weight[0] - net.weight[1]
    method = DeepFoolUAP(overshoot=overshoot)
    inversion = sweep(subject, Doubles(gray(1, classes)), [Goal(0)], method)
    inversion.step(torch.tensor([0]))
    v = inversion.perturbations[0].flatten()
    length = (1 + overshoot) * (z[1] - z[0] + 1e-4) / away.norm()
    assert v.norm().item() == pytest.approx(length.item(), rel=1e-9)
    assert torch.allclose(v / v.norm(), away / away.norm(), atol=1e-9)
    (found,) = inversion.best
    assert found.feasible
    assert found.asr == 1
    assert found.size == pytest.approx(v.view(SHAPE).abs().amax(0).sum().item(), rel=1e-6)
    # One image counted for its clean class, two forwards and a backward, one to measure.
    assert inversion.image_steps == 0.5 + 1.5 + 0.5


def test_pixels_that_the_clip_holds_are_left_alone(double: None) -> None:
    weight = torch.tensor([1.0, 1.0, -1.0, -1.0]).repeat(6)
    subject = Subject(Linear(torch.stack([weight, -weight]), torch.tensor([0.0, 1.0])), SHAPE, 2)
    x = torch.tensor([1.0, 0.5, 0.0, 0.5]).repeat(6).view(1, *SHAPE)  # white, gray, black, gray
    gap = -(2 * weight @ x.flatten() - 1)  # z_1 - z_0; the net starts in class 0 by 11
    assert gap == -11
    r, won, _ = deepfool(subject, x, torch.tensor([0]), 0.02, 20)
    assert won.all()
    assert (r == 0).all()
    raised = Subject(Linear(torch.stack([weight, -weight]), torch.tensor([0.0, 15.0])), SHAPE, 2)
    r, won, _ = deepfool(raised, x, torch.tensor([0]), 0.02, 20)
    assert won.all()
    held = (x == 1) | (x == 0)
    assert (r[held] == 0).all()
    free = 2 * weight.view(1, *SHAPE)[~held]  # 12 pixels can move
    expected = 1.02 * (15 - 12 + 1e-4) / free.square().sum() * free
    assert torch.allclose(r[~held], expected, atol=1e-12)


def test_a_class_out_of_reach_leaves_nothing_behind(rng: Generator) -> None:
    subject = linear(3, rng, [-1e6, 0.0, 0.0])
    goals, arms = [Goal(0), Goal(0)], torch.arange(2)
    inversion = sweep(subject, gray(1, 3), goals, DeepFoolUAP(max_pass=2))
    for passes in (1, 2):
        inversion.step(arms)
        assert inversion.done.tolist() == [passes == 2] * 2
    assert (inversion.perturbations == 0).all()
    for found in inversion.best:
        assert (found.feasible, found.size, found.asr, found.rounds) == (False, 12, 0, 2)


def test_a_flat_net_gives_no_step() -> None:
    subject = Subject(Linear(torch.zeros(2, 24), torch.tensor([0.0, 50.0])), SHAPE, 2)
    for target in (0, 1):
        x, goal = torch.full((3, *SHAPE), 0.5), torch.full((3,), target)
        r, won, spent = deepfool(subject, x, goal, 0.02, 20)
        assert (r == 0).all()
        assert won.tolist() == [target == 1] * 3
        assert spent == (1.5 if target == 1 else 3 * (20 + 0.5))


# The whole algorithm -----------------------------------------------------------------------------


def transcription(
    subject: Subject, x: Tensor, target: int, method: DeepFoolUAP, rng: Generator, passes: int
) -> Tensor:
    """Algorithm 1 for one class and one image at a time, as plain as it can be written."""
    v, longer = torch.zeros_like(x[0]), 1 + method.overshoot
    for _ in range(passes):
        for i in torch.randperm(len(x), generator=rng):
            start, r, turn = x[i] + v, torch.zeros_like(v), 0
            while True:
                at = (start + longer * r).requires_grad_()
                z = subject(at.clamp(0, 1)[None])[0]
                if z.argmax() == target or turn == method.iterations:
                    break
                c = z.argmax()
                (w,) = torch.autograd.grad(z[target] - z[c], at)
                out = ((at >= 1) & (w > 0)) | ((at <= 0) & (w < 0))
                w = torch.where(out, 0.0, w)
                r = r + ((z[c] - z[target]).abs() + 1e-4).detach() / (w**2).sum() * w
                turn += 1
            if z.argmax() == target:
                limit = method.bound or 1
                v = (v + longer * r).clamp(-limit, limit)
    return v


@pytest.mark.parametrize(
    "method",
    [DeepFoolUAP(), DeepFoolUAP(bound=30 / 255), DeepFoolUAP(overshoot=0.2, iterations=3)],
    ids=["plain", "bound", "short"],
)
@pytest.mark.parametrize("bent", [False, True])
def test_a_sweep_is_the_plain_algorithm(
    method: DeepFoolUAP, bent: bool, rng: Generator, double: None
) -> None:
    subject = curved() if bent else bands(2)
    clean = Doubles(band_images())
    inversion = sweep(subject, clean, method=method)
    for _ in range(2):
        inversion.step(ALL)
    x, y = whole(clean)
    source = Generator().manual_seed(0)
    rngs = [spawn(source) for _ in GOALS]
    for k, own in enumerate(rngs):
        v = transcription(subject, x[y != k], k, method, own, 2)
        assert torch.allclose(inversion.perturbations[k], v, atol=1e-7, rtol=0)
    moved = inversion.perturbations.abs().flatten(1).amax(1)
    assert (moved > 1e-3).sum() >= 2
    assert method.bound is None or moved.max().item() == pytest.approx(method.bound)


def test_arms_in_a_batch_and_one_by_one_end_alike(rng: Generator, double: None) -> None:
    data = band_images()
    most = (data.labels != 0) | (torch.arange(len(data)) < BANDS)  # one image of class 0
    clean = Doubles(Subset(data, most.nonzero().flatten()[3:]))  # arms of unequal length
    goals = [*GOALS, Goal(1, source=3)]
    together, alone, narrow = (
        sweep(curved(), clean, goals, DeepFoolUAP(max_batch=chunk)) for chunk in (512, 512, 2)
    )
    arms = torch.arange(len(goals))
    for _ in range(3):
        together.step(arms)
        narrow.step(arms)
    for arm in arms.flip(0):
        for _ in range(3):
            alone.step(arm.view(1))
    for other in (alone, narrow):
        assert torch.allclose(together.perturbations, other.perturbations, atol=1e-7, rtol=0)
        assert torch.equal(together.success, other.success)
        assert torch.equal(together.fooling, other.fooling)
        assert together.image_steps == other.image_steps
        for a, b in zip(together.best, other.best, strict=True):
            assert (a.goal, a.asr, a.rounds, a.feasible) == (b.goal, b.asr, b.rounds, b.feasible)
            assert a.size == pytest.approx(b.size, rel=1e-6)


def test_the_seed_alone_decides(rng: Generator) -> None:
    ends = []
    for unrelated, seed in ((1, 0), (2, 0), (1, 5)):
        torch.manual_seed(unrelated)
        inversion = sweep(curved(), seed=seed)
        inversion.step(ALL)
        ends.append(inversion.perturbations)
    assert torch.equal(ends[0], ends[1])
    assert not torch.allclose(ends[0], ends[2], atol=1e-3)


# What it finds -----------------------------------------------------------------------------------


@pytest.mark.parametrize("planted", range(BANDS))
def test_the_planted_class_needs_by_far_the_least(planted: int) -> None:
    inversion = sweep(bands(planted))
    inversion.step(ALL)
    assert inversion.done.all()
    sizes = sorted(inversion.best, key=lambda c: c.size)
    assert sizes[0].goal == Goal(planted)
    assert sizes[1].size > 20 * sizes[0].size
    _, strength = sizes[0].trigger.render()
    assert strength.flatten().argmax() == 0  # where the plant is


def test_without_a_plant_no_class_stands_out() -> None:
    inversion = sweep(bands())
    inversion.step(ALL)
    sizes = [c.size for c in inversion.best]
    assert min(sizes) > 0.9 * max(sizes)


def test_images_of_the_target_class_are_not_used(rng: Generator) -> None:
    data = band_images()
    pixels = data.images.clone()
    mine = data.labels == 2
    pixels[mine] = torch.randint(0, 256, pixels[mine].shape, generator=rng, dtype=torch.uint8)
    ends = []
    for images in (data.images, pixels):
        inversion = sweep(curved(), replace(data, images=images), [Goal(2), Goal(0)])
        for _ in range(2):
            inversion.step(torch.arange(2))
        ends.append((inversion.perturbations, inversion.success, inversion.fooling))
    for before, after in zip(*ends, strict=True):
        assert torch.equal(before[0], after[0])
    assert not torch.equal(ends[0][0][1], ends[1][0][1])  # the other goal does use them


def test_a_source_alone_is_used() -> None:
    x, y = whole(band_images())
    inversion = sweep(bands(), goals=[Goal(0), Goal(0, source=4)])
    inversion.step(torch.arange(2))
    whole_class, pair = inversion.best
    assert pair.size < whole_class.size
    got = asr(predict(bands(), pair.trigger(x)).argmax(1), y, pair.goal)
    assert (got.trials, got.value) == (6, pair.asr)


@pytest.mark.parametrize("goal", [Goal(0), Goal(1, source=5)])
def test_no_image_to_use_is_said(goal: Goal) -> None:
    data = band_images()
    only = Subset(data, (data.labels == 0).nonzero().flatten())
    with pytest.raises(NotApplicable, match=f"class {goal.target}"):
        sweep(bands(), only, [goal])


@pytest.mark.parametrize("bound", [10 / 255, 0.0])
def test_a_bound_is_kept(bound: float) -> None:
    inversion = sweep(bands(2), method=DeepFoolUAP(bound=bound))
    inversion.step(ALL)
    assert inversion.perturbations.abs().max().item() == pytest.approx(bound)
    assert not inversion.feasible.any()  # too little even for the planted class


# What it says ------------------------------------------------------------------------------------


def test_rates_are_those_of_the_perturbation_as_it_stands(rng: Generator) -> None:
    subject, (x, y) = curved(2.0), whole(band_images())
    inversion = sweep(subject, method=DeepFoolUAP(bound=20 / 255))
    inversion.step(ALL)
    before = predict(subject, x).argmax(1)
    for k, v in enumerate(inversion.perturbations):
        after = predict(subject, Additive(v)(x)).argmax(1)
        keep = y != k
        fooled = (after != before)[keep].double().mean().item()
        assert inversion.success[k].item() == pytest.approx(asr(after, y, Goal(k)).value, abs=1e-6)
        assert inversion.fooling[k].item() == pytest.approx(fooled, abs=1e-6)
    assert len(set(inversion.success.tolist())) > 1
    assert (inversion.success != inversion.fooling).any()


def test_a_candidate_is_what_it_says_and_never_gets_worse(rng: Generator) -> None:
    subject, (x, y) = curved(2.0), whole(band_images())
    inversion = sweep(subject, method=DeepFoolUAP(success_threshold=0.9, max_pass=8))
    trace = [inversion.best]
    for _ in range(8):
        inversion.step(ALL)
        trace.append(inversion.best)
        for found in trace[-1]:
            got = asr(predict(subject, found.trigger(x)).argmax(1), y, found.goal).value
            assert got == pytest.approx(found.asr, abs=1e-6)
            assert found.feasible == (found.asr >= 0.9 - 1e-6)
            assert isinstance(found.trigger, Additive)
            soft = found.trigger.delta.abs().amax(0).sum().item()
            size = soft if found.feasible else SIDE * SIDE
            assert found.size == pytest.approx(size, rel=1e-6)
    for before, after in pairwise(trace):
        for a, b in zip(before, after, strict=True):
            assert b.size <= a.size
            assert b.feasible or not a.feasible
            assert b.rounds == a.rounds + 1
    assert len({(c.feasible, c.goal.target) for best in trace[1:] for c in best}) > BANDS


@pytest.mark.parametrize(("factor", "taken"), [(1.5, False), (0.99, True), (0.5, False)])
def test_only_a_smaller_one_that_works_takes_the_place(factor: float, taken: bool) -> None:
    inversion = sweep(bands(2), goals=[Goal(2)])
    inversion.step(torch.tensor([0]))
    before = inversion.best[0]
    inversion.perturbations *= factor
    inversion._measure(0)
    after = inversion.best[0]
    assert (inversion.success[0] >= 0.6) == (factor > 0.6)  # half of it is too little
    assert after.feasible
    assert after.size == pytest.approx(before.size * (factor if taken else 1), rel=1e-5)
    assert after.asr >= 0.6


def test_a_share_at_the_bar_is_enough() -> None:
    # 0.7 of ten images must not fail in the last bit of a float32.
    images = band_images(each=10)
    only = Subset(images, (images.labels == 1).nonzero().flatten())
    inversion = sweep(bands(), only, [Goal(0)], DeepFoolUAP(success_threshold=0.7))
    inversion.step(torch.tensor([0]))
    v, (x, _) = inversion.perturbations[0].clone(), whole(only)
    for step in torch.linspace(1, 0, 4001):
        hits = int((bands()(Additive(v * step)(x)).argmax(1) == 0).sum())
        if hits == 7:
            break
    assert hits == 7
    inversion.feasible.zero_()
    inversion.perturbations[0] = v * step
    inversion._measure(0)
    assert inversion.feasible.tolist() == [True]


def test_the_standing_is_that_of_the_last_round() -> None:
    inversion = sweep(bands(2))
    start = inversion.progress
    inversion.step(torch.tensor([1, 2]))
    got = inversion.progress
    assert start.rounds.tolist() == [0] * BANDS
    assert start.penalty.isinf().all()
    assert (start.size == SIDE * SIDE).all()
    assert got.rounds.tolist() == [0, 1, 1, 0, 0, 0]
    assert torch.equal(got.success, inversion.success)
    sizes = inversion.perturbations.abs().amax(1).flatten(1).sum(1)
    assert torch.allclose(got.penalty[1:3], sizes[1:3])
    assert torch.allclose(got.size[1:3], sizes[1:3])
    assert not got.turned.any()


# Going on ----------------------------------------------------------------------------------------


def test_a_restored_sweep_goes_on_bit_by_bit(rng: Generator, tmp_path: Path) -> None:
    method = DeepFoolUAP(success_threshold=0.9)
    steady = sweep(curved(), method=method)
    steady.step(ALL)
    steady.step(torch.tensor([1, 4]))
    kept = steady.state()
    run = Run(store=tmp_path / "scan.state")
    run.save(kept)
    frozen_copy = {name: tensor.clone() for name, tensor in kept.items()}
    for _ in range(3):
        steady.step(ALL)
    assert all(torch.equal(kept[name], frozen_copy[name]) for name in kept)  # copies, not views
    recalled = run.load()
    assert recalled is not None
    again = sweep(curved(), method=method, seed=99)  # another seed: the state must decide
    again.restore(recalled)
    assert again.image_steps == kept["image_steps"].item()
    for _ in range(3):
        again.step(ALL)
    last = again.state()
    assert all(torch.equal(tensor, last[name]) for name, tensor in steady.state().items())
    assert set(last) == set(kept)
    for a, b in zip(steady.best, again.best, strict=True):
        assert (a.size, a.asr, a.rounds, a.feasible) == (b.size, b.asr, b.rounds, b.feasible)
        assert torch.equal(torch.cat(a.trigger.render()), torch.cat(b.trigger.render()))
    assert any(not torch.equal(last[name], kept[name]) for name in ("perturbations", "stored"))


def test_subject_and_images_stay_as_they_were(rng: Generator) -> None:
    subject, clean = curved(), band_images()
    pixels, weights = clean.images.clone(), [p.clone() for p in subject.net.parameters()]
    inversion = sweep(subject, clean)
    inversion.step(ALL)
    assert torch.equal(clean.images, pixels)
    for before, now in zip(weights, subject.net.parameters(), strict=True):
        assert torch.equal(before, now)
        assert now.requires_grad
        assert now.grad is None
