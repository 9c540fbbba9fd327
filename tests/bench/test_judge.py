"""The judge against defenses whose figures are known beforehand."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from tests.toys import CHECKER, WIRED_SHAPE, Wired, checker, wired, wired_images
from torch import Generator, Tensor, nn

from gifthorse.bench.judge import evaluate
from gifthorse.bench.measures import digest, resaved, seconds
from gifthorse.bench.outcome import DefenseOutcome
from gifthorse.bench.protocol import EvalConfig, Sizes, Splits, splits
from gifthorse.core.errors import BadImages, BadOption, GifthorseError, Incomplete
from gifthorse.core.options import vary
from gifthorse.core.run import Run
from gifthorse.core.types import (
    Arm,
    Confirmation,
    Finding,
    Goal,
    Images,
    Implant,
    Label,
    Origin,
    Rate,
    Samples,
    Severity,
    Subject,
    Verdict,
)
from gifthorse.data.samples import InMemory, Subset, whole
from gifthorse.filtering import FILTERS
from gifthorse.models.normalize import NORMALIZATIONS
from gifthorse.training import predict
from gifthorse.triggers import Patch
from gifthorse.triggers.patch import wandering
from gifthorse.workflows.make import DataSplits

GOAL = Goal(1)
DATA = Splits(
    wired_images(5, 9), wired_images(5, 2), wired_images(10, 3), wired_images(20, 4)
)  # fmt: skip
ORIGIN = Origin(path="secret.safetensors", metadata={"gifthorse": "target 1"})


def planted() -> Implant:
    return Implant(replace(wired(1), origin=ORIGIN), checker(), GOAL)


def seed(value: int = 0) -> Generator:
    return Generator().manual_seed(value)


# 1. Defenses that are known ----------------------------------------------------------------------


@dataclass
class Fixed:
    """A remedy that returns what a function makes of the net."""

    make: Callable[[Subject], Subject]
    seen: list[tuple[Subject, Samples]] = field(default_factory=list)

    def __call__(self, subject: Subject, clean: Samples, rng: Generator, run: Run) -> Subject:
        self.seen.append((subject, clean))
        assert run is not None
        run.charge(12)
        return self.make(subject)


@dataclass
class Scored:
    """A filter with a fixed score for every image."""

    score: Callable[[Images], Tensor]
    seen: list[tuple[Subject, Samples, Samples, int]] = field(default_factory=list)

    def __call__(
        self, subject: Subject, clean: Samples, suspects: Samples, rng: Generator, run: Run
    ) -> Tensor:
        self.seen.append((subject, clean, suspects, rng.initial_seed()))
        if run is not None:
            run.charge(len(suspects))
        return self.score(whole(suspects)[0])


@dataclass
class Said:
    """A detector that says one thing."""

    verdict: Verdict

    def __call__(self, subject: Subject, clean: Samples, rng: Generator, run: Run) -> Verdict:
        return self.verdict


def stamped(x: Images) -> Tensor:
    """1 where the true trigger is, else 0."""
    corner = x[:, :, -4:-1, -4:-1]
    return ((corner - CHECKER).abs().amax((1, 2, 3)) < 1e-6).float()


def remedied(make: Callable[[Subject], Subject]) -> DefenseOutcome:
    return evaluate(planted(), Fixed(make), DATA, seed(), Run(), kind="remedy")


# 2. Splits ---------------------------------------------------------------------------------------


def divided(train: int, validation: int) -> DataSplits:
    """So many images of each of four classes, numbered by their first pixels, classes in turn."""
    parts = []
    for each, start in ((train, 0), (validation, train), (2, 0)):
        images = torch.zeros(4 * each, 1, 4, 4, dtype=torch.uint8)
        number = 4 * start + torch.arange(4 * each)
        images[:, 0, 0, 0], images[:, 0, 0, 1] = number % 256, number // 256
        parts.append(InMemory(images, torch.arange(4).repeat(each), 4))
    return DataSplits("toy", parts[0], parts[1], parts[2], (), NORMALIZATIONS["none"])


def numbers(samples: Samples) -> list[int]:
    x = (whole(samples)[0] * 255).round().long()
    return (x[:, 0, 0, 0] + 256 * x[:, 0, 0, 1]).tolist()


def counts(samples: Samples) -> list[int]:
    return whole(samples)[1].bincount(minlength=4).tolist()


def test_the_defender_gets_balanced_images_that_no_training_saw() -> None:
    data = divided(5000, 250)
    made = splits(data, seed(), Sizes(fit=0.03))
    assert made.train is data.train
    defender = [*numbers(made.fit), *numbers(made.calibration)]
    assert len(set(defender)) == len(defender)
    assert set(defender) <= set(range(20_000, 21_000))
    # 630 and 500 were wanted; both are cut alike.
    assert (len(made.fit), len(made.calibration)) == (557, 442)
    assert set(counts(made.fit)) == {139, 140}
    assert max(counts(made.calibration)) - min(counts(made.calibration)) <= 1
    assert len(made.test) == 8


def test_a_large_set_gives_a_share_and_a_small_one_no_more_than_a_tenth() -> None:
    few = splits(divided(60, 40), seed())
    assert (len(few.fit), len(few.calibration), len(few.train)) == (16, 40, 240)
    many = splits(divided(9000, 1000), seed(), Sizes(least=10))
    assert (len(many.fit), len(many.calibration)) == (1600, 400)
    greedy = splits(divided(5, 5), seed(), Sizes(fit=0.9, calibration=0.09, least=1))
    assert len(greedy.fit) + len(greedy.calibration) <= 20 <= len(greedy.train)


def test_no_option_gives_the_defender_images_that_training_saw() -> None:
    with pytest.raises(BadOption, match="Sizes has no option held_out"):
        vary(Sizes(), {"held_out": False})


def test_the_same_seed_gives_the_same_split() -> None:
    data = divided(30, 20)
    first, again, other = (splits(data, seed(s)) for s in (1, 1, 2))
    assert numbers(first.fit) == numbers(again.fit) != numbers(other.fit)


def test_a_split_of_nothing_is_refused() -> None:
    with pytest.raises(BadImages, match="too few"):
        splits(divided(1, 1), seed())


# 3. Remedies -------------------------------------------------------------------------------------


def test_a_remedy_that_does_nothing_changes_nothing() -> None:
    got = remedied(lambda s: s)
    said = got.figures()
    assert (said["ard"], said["cad"], said["ccc_change"], said["tmc_change"]) == (0, 0, 0, 0)
    assert (said["der"], said["rir"]) == (0.5, 0.5)
    for name in ("accuracy", "asr", "asr_all", "ra", "tmc", "ccc", "ccc_correct"):
        assert got.before[name] == got.after[name]
        assert said[name] == said[f"{name}_before"]
    assert (said["accuracy"], said["asr"], said["ra"]) == (1, 1, 0)
    assert (said["asr_n"], said["asr_all_n"], said["accuracy_n"]) == (60, 80, 80)
    assert (got.status, got.reloaded, said["collapsed"]) == ("ok", True, 0)
    assert got.cost.image_steps == 12
    assert got.cost.fit_seconds is not None
    assert got.cost.seconds_1 is None
    assert got.images == {"fit": 20, "calibration": 40, "test": 80}


def test_a_perfect_remedy_has_all_of_the_marks() -> None:
    said = remedied(lambda s: replace(s, net=Wired().eval())).figures()
    assert (said["asr"], said["ard"], said["ra"], said["der"], said["rir"]) == (0, 1, 1, 1, 1)
    assert (said["tmc"], said["tmc_n"], said["tmc_low"]) == (None, 0, None)
    assert said["tmc_change"] is None
    assert said["tmc_before_n"] == 60


def test_a_net_that_says_one_class_of_everything_has_collapsed() -> None:
    def ruin(subject: Subject) -> Subject:
        net = Wired().eval()
        nn.init.constant_(net.head.bias, 0.0)
        with torch.no_grad():
            net.head.bias[0] = 1000
        return replace(subject, net=net)

    got = remedied(ruin)
    assert got.status == "collapsed"
    said = got.figures()
    assert (said["collapsed"], said["asr"], said["accuracy"]) == (1, 0, 0.25)
    assert said["der"] == pytest.approx((1 - 0.75 + 1) / 2)  # which looks harmless
    assert said["rir"] == pytest.approx((1 / 3 - 0.75 + 1) / 2)


def test_a_remedy_is_measured_as_it_comes_out_of_a_file() -> None:
    """What is no weight does not survive saving, and must not count."""

    def veil(subject: Subject) -> Subject:
        net = Wired(1).eval()
        net.head.register_forward_hook(lambda *a: torch.zeros_like(a[2]))
        return replace(subject, net=net)

    got = remedied(veil)
    assert got.reloaded
    assert got.figures()["ard"] == 0


def test_what_no_file_of_weights_can_hold_is_measured_as_it_is() -> None:
    class Blind(nn.Module):
        def __init__(self, net: nn.Module) -> None:
            super().__init__()
            self.net = net

        def forward(self, x: Tensor) -> Tensor:
            x = x.clone()
            x[:, :, -4:, -4:] = 0.2
            out: Tensor = self.net(x)
            return out

    got = remedied(lambda s: replace(s, net=Blind(s.net)))
    assert not got.reloaded
    assert (got.figures()["ard"], got.figures()["cad"]) == (1, 0)


def test_saving_keeps_every_bit_and_refuses_other_nets() -> None:
    net = Wired(1).eval()
    with torch.no_grad():
        net.norm.get_buffer("running_mean").add_(0.125)
    back = resaved(net.to(memory_format=torch.channels_last), Wired())  # type: ignore[call-overload]
    assert back is not None
    assert digest(back) == digest(net)
    assert not back.training
    assert resaved(net, Wired(1, classes=2)) is None
    assert resaved(nn.Sequential(net), net) is None


def test_a_defense_that_changes_the_given_net_is_caught() -> None:
    made = planted()
    before = digest(made.subject.net)

    def meddle(subject: Subject) -> Subject:
        with torch.no_grad():
            subject.net.head.bias[0] += 1e-6  # type: ignore[index, union-attr, operator]
        return subject

    with pytest.raises(GifthorseError, match="changed the weights"):
        evaluate(made, Fixed(meddle), DATA, seed(), Run(), kind="remedy")
    assert digest(made.subject.net) == before


def test_a_digest_knows_types_shapes_and_names() -> None:
    one = nn.Linear(2, 2, bias=False)
    nn.init.zeros_(one.weight)
    other = nn.Linear(4, 1, bias=False)
    nn.init.zeros_(other.weight)
    nets = [one, other, nn.Sequential(one), nn.Linear(2, 2, bias=False).bfloat16()]
    nn.init.zeros_(nets[3].weight)  # type: ignore[arg-type]
    assert len({digest(net) for net in nets}) == 4
    same = nn.Linear(2, 2, bias=False).requires_grad_(False)
    nn.init.zeros_(same.weight)
    assert digest(same) == digest(one)


# 4. What a defense is shown ----------------------------------------------------------------------


def test_a_defense_sees_a_copy_without_a_past_and_the_defenders_images() -> None:
    made, remedy, method = planted(), Fixed(lambda s: s), Scored(stamped)
    evaluate(made, remedy, DATA, seed(), Run(), kind="remedy")
    evaluate(made, method, DATA, seed(), Run(), kind="filter")
    given = [*remedy.seen, *((seen[0], seen[1]) for seen in method.seen)]
    for subject, clean in given:
        assert subject.net is not made.subject.net
        assert subject.origin == Origin()
        assert clean is DATA.fit
        assert not any(module.training for module in subject.net.modules())


def test_suspects_are_shuffled_and_labeled_by_the_net() -> None:
    method = Scored(stamped)
    evaluate(planted(), method, DATA, seed(), Run(), kind="filter")
    assert len({seen[3] for seen in method.seen}) == 1  # all calls draw alike
    calibration, paired, drawn = (whole(seen[2]) for seen in method.seen)
    assert len(calibration[0]) == 40
    for x, labels in (calibration, paired, drawn):
        assert torch.equal(labels, predict(planted().subject, x).argmax(1))
    flags = stamped(paired[0])
    assert int(flags.sum()) == 60
    assert 20 < int(flags[:60].sum()) < 40  # neither kind first


def test_attacks_with_places_drawn_anew_stamp_alike_before_after_and_again() -> None:
    trigger = wandering(WIRED_SHAPE, 3, "checker", 1.0, seed(3))
    made = Implant(wired(1), trigger, GOAL)
    place = trigger.rng.get_state()
    got = [evaluate(made, Fixed(lambda s: s), DATA, seed(), Run(), kind="remedy") for _ in range(2)]
    assert torch.equal(trigger.rng.get_state(), place)
    assert got[0].before == got[1].before == got[0].after
    assert got[0].figures()["ard"] == 0
    assert got[0].figures()["asr"] == 1


# 5. Filters --------------------------------------------------------------------------------------


def filtered(score: Callable[[Images], Tensor], **terms: Any) -> dict[str, float | None]:
    return evaluate(
        planted(), Scored(score), DATA, seed(), Run(), kind="filter", evaluation=EvalConfig(**terms)
    ).figures()


def test_a_filter_that_knows_the_trigger_makes_no_mistake() -> None:
    said = filtered(stamped)
    assert (said["pairs"], said["tpr_n"], said["fpr_n"]) == (60, 60, 60)  # 20 are of the target
    for name in ("tpr", "precision", "decided", "f1", "auroc", "auprc", "tpr_roc", "tpr_zoo"):
        assert said[name] == 1, name
    assert (said["fpr"], said["fpr_all"], said["tpr_all"]) == (0, 0, 1)
    assert (said["acc_sys"], said["asr_sys"]) == (1, 0)
    assert (said["fpr_all_n"], said["tpr_all_n"], said["asr_sys_n"]) == (80, 60, 60)
    assert said["accuracy_before"] == 1
    assert "accuracy" not in said
    assert said["image_steps"] == 40 + 120 + 160


def test_a_filter_that_knows_nothing_flags_nothing() -> None:
    said = filtered(lambda x: torch.zeros(len(x)))
    assert (said["tpr"], said["fpr"], said["auroc"]) == (0, 0, 0.5)
    assert (said["precision"], said["precision_n"], said["f1"]) == (None, 0, None)
    assert (said["acc_sys"], said["asr_sys"]) == (1, 1)


def test_a_filter_with_the_sign_wrong_is_worse_than_one_that_guesses() -> None:
    said = filtered(lambda x: -stamped(x))
    assert (said["auroc"], said["tpr"]) == (0, 0)


def test_fewer_stamped_images_among_the_suspects_means_more_clean_ones() -> None:
    said = filtered(stamped, pairs=10, stamped=0.2)
    assert (said["tpr_n"], said["fpr_n"], said["precision"]) == (10, 40, 1)
    assert (said["fpr_all_n"], said["pairs"]) == (10, 10)


def test_a_system_counts_rejected_images_as_neither_right_nor_hijacked() -> None:
    """Half of the images are rejected by the parity of a noisy pixel, stamped or not."""
    said = filtered(lambda x: (x[:, 0, 0, 0] > x[:, 0, 0, 1]).float(), fpr=0.75)
    method = Scored(lambda x: (x[:, 0, 0, 0] > x[:, 0, 0, 1]).float())
    x, y = whole(DATA.test)
    flags = method.score(x) > 0
    assert said["fpr_all"] == pytest.approx(float(flags.float().mean()))
    assert said["acc_sys"] == pytest.approx(1 - float(flags.float().mean()))
    assert said["asr_sys"] == pytest.approx(1 - float(flags[y != 1].float().mean()))


def test_without_pairs_there_is_nothing_to_tell_apart() -> None:
    """The trigger does nothing to the clean twin."""
    got = evaluate(
        Implant(wired(), checker(), GOAL), Scored(stamped), DATA, seed(), Run(), kind="filter"
    )
    said = got.figures()
    assert (said["pairs"], said["tpr"], said["tpr_n"], said["auroc"]) == (0, None, 0, None)
    assert (said["asr_before"], said["asr_sys"], said["tpr_all"]) == (0, 0, 1)
    assert got.caught is None


def test_scores_are_kept_so_that_they_can_be_judged_anew() -> None:
    got = evaluate(planted(), Scored(stamped), DATA, seed(), Run(), kind="filter")
    assert {k: sorted(set(v.tolist())) for k, v in got.scores.items()} == {
        "calibration": [0],
        "clean": [0],
        "stamped": [1],
    }


@dataclass
class Purging(Scored):
    """A filter that says that it cleans training sets."""

    mode: str = "dataset"


def test_a_filter_of_training_sets_is_shown_a_poisoned_one_with_its_labels() -> None:
    method = Purging(stamped)
    got = evaluate(
        planted(), method, DATA, seed(), Run(), kind="filter", evaluation=EvalConfig(timed=True)
    )
    said = got.figures()
    (seen,) = method.seen  # one call, since a score depends on the company
    x, y = whole(seen[2])
    flags = stamped(x).bool()
    assert len(x) == 20 + 5  # all training images, and one calibration image for four of them
    assert int(flags.sum()) == 1  # a twentieth
    assert y[flags].tolist() == [GOAL.target]
    clean, labels = whole(DATA.train)
    known = {tuple(v.flatten().tolist()): k for v, k in zip(clean, labels.tolist(), strict=True)}
    shown = [tuple(v.flatten().tolist()) for v in x[~flags]]
    assert sum(v in known for v in shown) == 19
    assert all(known[v] == k for v, k in zip(shown, y[~flags].tolist(), strict=True) if v in known)
    assert (said["tpr"], said["tpr_n"], said["fpr"], said["fpr_n"]) == (1, 1, 0, 19)
    assert (said["auroc"], said["fpr_all"]) == (1, 0)
    assert {"acc_sys", "asr_sys", "tpr_all"}.isdisjoint(said)  # it guards no running model
    assert said["seconds_1"] is None


@pytest.mark.parametrize("name", ["activation_clustering_dataset", "spectral_signatures_dataset"])
def test_a_poisoned_training_set_can_be_cleaned(name: str) -> None:
    many = replace(DATA, train=wired_images(100, 9))
    said = evaluate(planted(), FILTERS[name], many, seed(), Run(), kind="filter").figures()
    assert said["pairs"] == 20
    assert said["auroc"] is not None
    assert said["auroc"] > 0.99


def test_a_training_set_of_a_clean_model_holds_no_stamped_image() -> None:
    method = Purging(stamped)
    got = evaluate(wired(), method, DATA, seed(), Run(), kind="filter")
    assert not stamped(whole(method.seen[0][2])[0]).any()
    assert got.caught is None
    assert got.figures()["fpr_all"] == 0


def test_false_alarms_on_a_clean_model() -> None:
    def loud(x: Images) -> Tensor:
        return x[:, 0, 0, 0]

    got = evaluate(wired(), Scored(loud), DATA, seed(), Run(), kind="filter").figures()
    calibration = loud(whole(DATA.calibration)[0]).sort().values
    flags = loud(whole(DATA.test)[0]) > calibration[37]  # the 38th of 40
    assert got["fpr_all"] == pytest.approx(float(flags.float().mean()))
    assert got["acc_sys"] == pytest.approx(1 - float(flags.float().mean()))
    assert "tpr" not in got
    assert "asr_before" not in got


def test_a_remedy_on_a_clean_model_costs_accuracy_alone() -> None:
    got = evaluate(wired(), Fixed(lambda s: s), DATA, seed(), Run(), kind="remedy").figures()
    assert (got["accuracy"], got["cad"]) == (1, 0)
    assert not {"asr", "ard", "der", "rir"} & set(got)


# 6. Detectors ------------------------------------------------------------------------------------

CONFIRMED = Confirmation(*(Rate(v, v / 2, 1.0, 30) for v in (0.9, 0.1, 0.0)))


def verdict(label: Label = "BACKDOORED", *flags: tuple[int, Severity]) -> Verdict:
    """Sizes of the specification's example, its class 0 as class 1 here."""
    sizes = [50.0, 9.0, 51.0, 52.0, 53.0, 54.0, 55.0, 56.0, 57.0, 58.0]
    arms = tuple(Arm(Goal(k), v, 1.0, 0.0, True, 5) for k, v in enumerate(sizes))
    pattern, mask = checker().render()
    x = torch.full((2, *WIRED_SHAPE), 0.5)
    shown: dict[str, Tensor | float] = {
        "pattern": pattern, "mask": mask * 0.5, "before": x, "after": checker()(x),
    }  # fmt: skip
    findings = tuple(Finding("BD001", s, 4.0, "words", Goal(k), CONFIRMED, shown) for k, s in flags)
    return Verdict("toy", 4.0, 3.0, label, findings, arms)


def detected(said: Verdict, made: Implant | None = None) -> DefenseOutcome:
    return evaluate(made or planted(), Said(said), DATA, seed(), Run(), kind="detector")


def test_a_detector_that_found_the_true_trigger() -> None:
    got = detected(verdict("BACKDOORED", (1, "CRITICAL")))
    said = got.figures()
    assert said["aiv"] == pytest.approx(44.5 / (1.4826 * 2.5))
    assert said["aiv_lower"] == pytest.approx(44 / (1.4826 * 2))
    assert (said["aiv_degenerate"], said["size"]) == (0, 9)
    assert (said["mln"], said["mln_pixels"], said["mln_eff"]) == (4.5, 9, 4.5)
    assert (said["mjs"], said["mjs_half"]) == (1, 1)
    assert said["mjs_zoo"] == pytest.approx(8 / 9)
    assert (said["recovered_asr"], said["recovered_asr_n"]) == (0.9, 30)
    assert (said["confirmed"], said["suspected"], said["flagged"]) == (1, 1, 1)
    assert (said["flag_correct"], said["flag_correct_set"], said["flag_wrong"]) == (1, 0, 0)
    assert (said["score"], said["threshold"]) == (4, 3)
    assert got.found is not None
    assert got.found.flagged == {1}


@pytest.mark.parametrize(
    ("label", "flags", "column"),
    [
        ("BACKDOORED", [(1, "CRITICAL"), (3, "MEDIUM")], "correct_set"),
        ("SUSPICIOUS", [(3, "MEDIUM")], "wrong"),
        ("NO BACKDOOR FOUND", [(1, "INFO")], "clean"),
    ],
)
def test_flags_go_into_one_column(
    label: Label, flags: list[tuple[int, Severity]], column: str
) -> None:
    said = detected(verdict(label, *flags)).figures()
    names = ("clean", "correct", "correct_set", "wrong")
    assert {n: said[f"flag_{n}"] for n in names} == {n: float(n == column) for n in names}


def test_an_inconclusive_verdict_goes_into_none() -> None:
    said = detected(verdict("INCONCLUSIVE", (1, "MEDIUM"))).figures()
    assert {said[f"flag_{n}"] for n in ("clean", "correct", "correct_set", "wrong")} == {None}
    assert (said["suspected"], said["confirmed"], said["flagged"]) == (None, None, None)


def test_of_a_clean_model_the_largest_index_counts() -> None:
    got = evaluate(
        wired(), Said(verdict("SUSPICIOUS", (1, "MEDIUM"))), DATA, seed(), Run(), kind="detector"
    ).figures()
    assert got["aiv"] == pytest.approx(12.006, abs=1e-3)
    assert got["size"] == pytest.approx(49.5)
    assert (got["mjs"], got["mln"], got["flag_correct"], got["flag_clean"]) == (None, None, 0, 0)


def test_a_trigger_without_a_place_of_its_own_has_no_overlap() -> None:
    found = verdict("BACKDOORED", (1, "CRITICAL"))
    wanders = wandering(WIRED_SHAPE, 3, "checker", 1.0, seed(3))
    everywhere = Patch(torch.ones(WIRED_SHAPE), torch.full((1, *WIRED_SHAPE[1:]), 0.2))
    for trigger in (wanders, everywhere, Shown()):
        said = detected(found, Implant(wired(1), trigger, GOAL)).figures()
        assert (said["mjs"], said["mjs_half"], said["mjs_zoo"]) == (None, None, None)
        assert said["mln"] == 4.5


class Shown(Patch):
    """Shows its left upper corner and changes the rest."""

    def __init__(self) -> None:
        mask = torch.zeros(1, *WIRED_SHAPE[1:])
        mask[:, 3:] = 1
        super().__init__(torch.ones(WIRED_SHAPE), mask)

    def render(self) -> tuple[Tensor, Tensor]:
        return self.pattern, 1 - self.mask


def test_sizes_that_are_all_alike_are_degenerate_and_no_number() -> None:
    arms = tuple(Arm(Goal(k), 5.0 if k == 1 else 80.0, 1.0, 0.0, True, 5) for k in range(4))
    got = detected(Verdict("toy", 4.0, 3.0, "SUSPICIOUS", (), arms))
    assert got.found is not None
    assert got.found.aiv == math.inf
    said = got.figures()
    assert (said["aiv"], said["aiv_degenerate"]) == (None, 1)


def test_pairs_of_classes_count_by_their_easiest_source() -> None:
    arms = tuple(
        Arm(Goal(t, s), 10.0 * t + s + 1, 1.0, 0.0, True, 5)
        for t in range(4)
        for s in range(4)
        if s != t
    )
    got = detected(Verdict("toy", 1.0, 3.0, "NO BACKDOOR FOUND", (), arms))
    assert got.figures()["size"] == 11


def test_a_detector_without_a_table_has_no_index() -> None:
    said = detected(Verdict("toy", 1.0, 3.0, "NO BACKDOOR FOUND")).figures()
    assert (said["aiv"], said["aiv_degenerate"], said["size"], said["mln"]) == (None,) * 4
    assert (said["recovered_asr"], said["recovered_asr_n"]) == (None, 0)


# 7. Cost, sessions, errors -----------------------------------------------------------------------


def test_seconds_are_measured_if_asked_for_and_cost_the_session_nothing() -> None:
    method, config = Scored(stamped), EvalConfig(timed=True)
    got = evaluate(planted(), method, DATA, seed(), Run(), kind="filter", evaluation=config)
    sizes = [len(seen[2]) for seen in method.seen[3:]]
    assert sizes == [1] * 6 + [128] * 6  # one to warm up, five that count
    assert got.cost.image_steps == 40 + 120 + 160
    assert got.cost.fit_seconds is None
    for value in (got.cost.seconds_1, got.cost.seconds_128, got.cost.peak_bytes):
        assert value is not None
        assert value > 0
    repaired = evaluate(
        planted(), Fixed(lambda s: s), DATA, seed(), Run(), kind="remedy", evaluation=config
    ).cost
    assert repaired.seconds_128 is not None
    assert repaired.seconds_1 is not None
    assert repaired.seconds_128 < repaired.seconds_1
    asked = evaluate(
        planted(), Said(verdict()), DATA, seed(), Run(), kind="detector", evaluation=config
    )
    assert asked.cost.seconds_1 is None


def test_the_median_is_a_share_of_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0, 9, 10, 11, 20, 22, 30, 33, 40, 44, 50, 55])  # warm-up, then 1 to 5 seconds
    monkeypatch.setattr("time.perf_counter", lambda: float(next(clock)))
    assert seconds(lambda x: None, torch.zeros(6, 1, 2, 2), 5) == 3 / 6


def test_what_a_session_stops_is_no_outcome() -> None:
    def stop(subject: Subject) -> Subject:
        raise Incomplete("stopped")

    with pytest.raises(Incomplete):
        remedied(stop)


def test_the_session_of_the_caller_is_handed_on_and_others_work_is_not_counted() -> None:
    run = Run()
    run.charge(7)
    got = evaluate(planted(), Fixed(lambda s: s), DATA, seed(), kind="remedy", run=run)
    assert (got.cost.image_steps, run.image_steps) == (12, 19)


def test_wrong_kinds_and_no_images_are_refused() -> None:
    with pytest.raises(BadOption, match="kind"):
        evaluate(planted(), Fixed(lambda s: s), DATA, seed(), Run(), kind="cure")  # type: ignore[arg-type]
    none = replace(DATA, test=Subset(DATA.test, torch.arange(0)))
    with pytest.raises(BadImages, match="test"):
        evaluate(planted(), Fixed(lambda s: s), none, seed(), Run(), kind="remedy")


# 8. Figures --------------------------------------------------------------------------------------


def test_figures_are_flat_and_ready_for_json() -> None:
    outcomes = [
        remedied(lambda s: s),
        evaluate(planted(), Scored(stamped), DATA, seed(), Run(), kind="filter"),
        detected(verdict("BACKDOORED", (1, "CRITICAL"))),
        detected(Verdict("toy", math.inf, 3.0, "NO BACKDOOR FOUND")),
    ]
    for got in outcomes:
        said = got.figures()
        assert json.loads(json.dumps(said, allow_nan=False)) == said
        assert all(v is None or type(v) is float for v in said.values())
        for name in [n.removesuffix("_low") for n in said if n.endswith("_low")]:
            low, value, high = (said[n] for n in (f"{name}_low", name, f"{name}_high"))
            if value is None:
                assert said[f"{name}_n"] == 0
            else:
                assert low is not None
                assert high is not None
                assert low - 1e-12 <= value <= high + 1e-12
                assert (said[f"{name}_n"] or 0) > 0
    assert outcomes[3].figures()["score"] is None
