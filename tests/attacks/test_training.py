"""Training under an attack: interruption, choice of epoch, parts of the net, company."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.toys import QUICK, Fragile, Stopped, blob_images, blobs
from torch import Generator, Tensor, nn
from torch.optim import SGD

from gifthorse.attacks import BadNet
from gifthorse.attacks import training as implanting
from gifthorse.attacks.poisoning import Mixing
from gifthorse.attacks.training import Job, Keep
from gifthorse.core.run import Run
from gifthorse.core.types import Goal, Subject
from gifthorse.data.samples import batches
from gifthorse.models.features import features, head, with_features
from gifthorse.training import Callback, fit, frozen_eval, predict, tune
from gifthorse.triggers import Learned, Patch, Stamp

GOAL, TRAIN = Goal(2), blob_images(each=40)
SHORT = replace(QUICK, epochs=3)


def state(subject: Subject) -> dict[str, Tensor]:
    return {k: v.clone() for k, v in subject.net.state_dict().items()}


@pytest.mark.parametrize("mode", ["batch", "dataset", "loss_joint"])
@pytest.mark.parametrize("share", [0.0, 0.2])
def test_an_interrupted_attack_goes_on_to_the_same_weights(
    mode: Any, share: float, tmp_path: Path
) -> None:
    attack = BadNet(Stamp(form="wandering"), mixing=Mixing(0.1, mode), recipe=SHORT)
    attack = replace(attack, keep=Keep(share))
    whole = attack(blobs(), TRAIN, GOAL, Generator().manual_seed(0), Run())
    store = tmp_path / "state"
    with pytest.raises(Stopped):
        attack(blobs(), TRAIN, GOAL, Generator().manual_seed(0), run=Fragile(store))
    steps: list[int] = []
    run = Run(lambda done, total, words: steps.append(done), store=store)
    made = attack(blobs(), TRAIN, GOAL, Generator().manual_seed(0), run)
    assert all(torch.equal(v, state(whole.subject)[k]) for k, v in state(made.subject).items())
    assert min(steps) > len(TRAIN) * (1 - share) // SHORT.batch  # the first epoch is not repeated


def test_only_the_part_that_is_trained_changes() -> None:
    before = state(blobs())
    for part in ("classifier", "features"):
        recipe = replace(SHORT, epochs=1, part=part)
        after = state(fit(blobs(), TRAIN, recipe, Generator().manual_seed(0), Run()))
        changed = {k for k in before if not torch.equal(before[k], after[k])}
        own = {k for k in before if k.startswith(head(blobs().net))}
        assert changed == (own if part == "classifier" else set(before) - own)


def last(subject: Subject) -> nn.Linear:
    found = subject.net.get_submodule(head(subject.net))
    assert isinstance(found, nn.Linear)
    return found


def test_the_kept_epoch_has_the_highest_success_within_the_bound(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Success and accuracy are dictated epoch by epoch; the kept net is known by a counter."""
    trace = [(0.5, 0.90), (0.95, 0.80), (0.9, 0.89), (0.7, 0.91)]

    class Dictated(Callback):
        def on_epoch_end(self, learner: Subject, epoch: int) -> None:
            with torch.no_grad():
                last(learner).bias.fill_(float(epoch))

    attack = BadNet(recipe=replace(SHORT, epochs=4), keep=Keep(0.2, max_drop=0.03))
    job = Job(attack, blobs(), TRAIN, GOAL, Generator().manual_seed(0), Run())
    held, rest = job.hold_out()
    figures = iter([(0.0, 0.2), *trace])
    monkeypatch.setattr(implanting._Choice, "_figures", lambda self, learner: next(figures))
    trigger = Stamp().draw(blobs().shape, Generator())
    made = job.learn(rest, trigger, held=held, callbacks=[Dictated()])
    assert last(made).bias[0].item() == 2.0  # 0.89 is within 0.03 of 0.91; 0.80 is not


def test_variables_that_join_go_down_the_loss_of_the_net() -> None:
    """A joined variable that the loss squares shrinks by 1 - 2 lr a step, as by hand."""
    free = torch.tensor(1.0, requires_grad=True)

    class Joined(Callback):
        def extra_optimizers(self, learner: Subject) -> list[SGD]:
            return [SGD([free], 0.1)]

    recipe = replace(SHORT, epochs=1)
    fit(
        blobs(),
        TRAIN,
        recipe,
        Generator().manual_seed(0),
        Run(),
        loss=lambda subject, batch: subject(batch[0]).sum() * 0 + free**2,
        callbacks=[Joined()],
    )
    assert free.item() == pytest.approx(0.8 ** (len(TRAIN) // recipe.batch), rel=1e-5)


def test_still_holds_a_net_and_puts_it_back() -> None:
    subject = blobs()
    subject.net.train()
    first = next(subject.net.parameters())
    first.requires_grad_(False)
    with frozen_eval(subject):
        assert not any(m.training for m in subject.net.modules())
        assert not any(p.requires_grad for p in subject.net.parameters())
    assert all(m.training for m in subject.net.modules())
    assert [p.requires_grad for p in subject.net.parameters()].count(False) == 1


def test_tuning_moves_the_trigger_and_nothing_else() -> None:
    subject, shape = blobs(), blobs().shape
    before = state(subject)
    learned = Learned(Stamp(ink="random").fixed(shape, Generator().manual_seed(0)))
    start = learned.frozen()
    stream = [batch for _ in range(4) for batch in batches(TRAIN, 50)]
    losses = tune(
        subject,
        learned.variables,
        lambda batch: nn.functional.cross_entropy(
            subject(learned.stamp(batch[0])), torch.full_like(batch[1], 2)
        ),
        stream,
    )
    assert losses[-1] < losses[0]
    assert all(torch.equal(v, before[k]) for k, v in state(subject).items())
    assert torch.equal(learned.frozen().mask, start.mask)
    outside = start.mask[0] == 0
    assert torch.equal(
        learned.frozen().pattern[:, outside], torch.zeros_like(start.pattern)[:, outside]
    )


def test_a_learned_patch_starts_as_the_patch_and_knows_its_opacity() -> None:
    shape = blobs().shape
    patch = Stamp(ink="random", opacity=0.3).fixed(shape, Generator().manual_seed(0))
    x, _ = TRAIN[torch.arange(5)]
    for opacity in ("fixed", "shared", "free"):
        learned = Learned(patch, opacity)
        assert torch.allclose(learned(x), patch(x), atol=1e-3)
        assert torch.allclose(learned.frozen()(x), learned(x), atol=1e-6)
        other = Learned(Patch(torch.zeros(shape), patch.mask), opacity)
        other.load_state_dict(learned.state_dict())
        assert torch.equal(other(x), learned(x))
    assert len(Learned(patch, "fixed").variables) == 1
    assert Learned(patch, "shared").strength.numel() == 1


def test_features_are_what_goes_into_the_last_layer() -> None:
    subject = blobs()
    x, _ = TRAIN[torch.arange(5)]
    logits, inside = with_features(subject, x)
    assert torch.equal(last(subject)(inside), logits)
    assert torch.equal(logits, predict(subject, x))
    assert torch.equal(features(subject, x), inside)
    assert inside.requires_grad
    assert not last(subject)._forward_pre_hooks


def keyed(run: Run) -> Run:
    return run.keyed("method", blobs(), blob_images(2), Generator().manual_seed(0))


def test_steps_before_an_interruption_count_once(tmp_path: Path) -> None:
    first = Run(store=tmp_path / "state")
    first.charge(100)
    keyed(first).save([1])
    again = Run(store=tmp_path / "state")
    for _ in range(3):
        assert keyed(again).load() == [1]
    assert again.image_steps == 100


def test_a_ledger_keeps_stages_apart_and_together(tmp_path: Path) -> None:
    store = tmp_path / "state"
    run = keyed(Run(store=store))
    run.save({"epoch": 1, "parts": [torch.arange(3)]})
    run.checkpoint("second").save([1.5, "words"])
    again = keyed(Run(store=store))
    assert again.checkpoint("second").load() == [1.5, "words"]
    assert torch.equal(again.load()["parts"][0], torch.arange(3))
    assert again.checkpoint("third").load() is None
