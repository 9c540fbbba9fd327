"""Everything that can be said of a known trigger inside a net."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, TypeAlias

import torch
from torch import Generator, Tensor

from gifthorse.analysis.attribution import (
    Maps,
    Shift,
    attention_shift,
    available,
    grad_cam,
    map_distance,
)
from gifthorse.analysis.collecting import given
from gifthorse.analysis.paths import ActivationPath, Silenced, activation_path, silenced, tac
from gifthorse.analysis.projection import GROUPS, FeatureView, Projection, feature_view
from gifthorse.analysis.separation import Separation, separation_curve
from gifthorse.analysis.similarity import Centroids, Discrepancy, centroids, linear_cka, mmd
from gifthorse.core.errors import BadImages, ShapeMismatch
from gifthorse.core.fields import AtLeast, method
from gifthorse.core.metrics import asr, mean_rate
from gifthorse.core.tensors import spawn
from gifthorse.core.types import Goal, Images, Labels, Rate, Samples, Subject, Trigger
from gifthorse.data.samples import whole
from gifthorse.models.features import features
from gifthorse.report.figures import trigger as figures
from gifthorse.report.figures.drawing import axis_name
from gifthorse.report.json import write_json
from gifthorse.training import frozen_eval, predict

Draw: TypeAlias = Callable[[Path], None]

LEAST = 4  # pairs below which nothing can be said


@dataclass(frozen=True, eq=False)
class Attention:
    """Where a net looks for the target, without and with the trigger.

    Attributes:
        before: Grad-CAM maps of clean images.
        after: Of the same images, stamped.
        shift: How far stamping moves these maps.
        table: The cells of Table 19 beside another net; empty without one.
    """

    before: Maps
    after: Maps
    shift: Shift
    table: dict[str, dict[str, Shift]]


@dataclass(frozen=True)
class Likeness:
    """How alike features are.

    Attributes:
        cka: Alignment of what each stage gives for clean images and for stamped ones.
        against: The same for this net and another, on clean images; empty without one.
        mmd: Distance of stamped images from clean ones of the target class, None if these are
            fewer than two.
        centroids: How their means lie; empty without clean images of the target class.
    """

    cka: dict[str, float]
    against: dict[str, float]
    mmd: Discrepancy | None
    centroids: dict[str, Centroids]


@dataclass(frozen=True, eq=False)
class AnalysisResult:
    """What came of an analysis.

    Attributes:
        goal: What the trigger does.
        pairs: Clean images that were also stamped.
        asr: Attack success on them.
        shown: Clean and stamped images to draw.
        attention: Where the net looks; None without captum.
        view: Penultimate features in the plane.
        curves: Neuron separation over the number of neurons, by net.
        path: The channels that carry the trigger.
        changes: Trigger activation change of every channel, by stage.
        silenced: Attack success without these channels.
        likeness: How alike features are.
    """

    goal: Goal
    pairs: int
    asr: Rate
    shown: tuple[Images, Images]
    attention: Attention | None
    view: FeatureView
    curves: dict[str, list[Separation]]
    path: ActivationPath
    changes: dict[str, Tensor]
    silenced: Silenced
    likeness: Likeness


@method
class TriggerAnalysis:
    """Look at a known trigger inside a net, and perhaps at the same inside a clean one.

    Attributes:
        pairs: Most images that are stamped, drawn at random.
        mapped: Most pairs whose attribution maps are compared.
        shown: Pairs drawn.
        method: How features are placed in the plane: `tsne` or `pca`.
        q: Channels a stage on the activation path.
        draws: Random sets of channels beside those of the path.
        permutations: Random splits for the p-value of MMD.

    Source: TrojanZoo secs. 1 and 6.4 (its analysis tools, Table 19).
    """

    pairs: Annotated[int, AtLeast(1)] = 500
    mapped: Annotated[int, AtLeast(1)] = 100
    shown: Annotated[int, AtLeast(1)] = 6
    method: Projection = "tsne"
    q: Annotated[int, AtLeast(1)] = 5
    draws: Annotated[int, AtLeast(1)] = 20
    permutations: Annotated[int, AtLeast(1)] = 500

    def __call__(
        self,
        subject: Subject,
        clean: Samples,
        trigger: Trigger,
        goal: Goal,
        rng: Generator,
        *,
        against: Subject | None = None,
    ) -> AnalysisResult:
        """Return all figures; nothing that was given is changed.

        Args:
            subject: The classifier with the backdoor.
            clean: Clean images; those that the goal is about are stamped.
            trigger: The trigger.
            goal: What it does.
            rng: Source of all randomness.
            against: A clean classifier of the same images.

        Raises:
            BadImages: If there are fewer than 4 images to stamp.
            ShapeMismatch: If the other classifier is for other images or classes.
        """
        _check(subject, against)
        every, labels = whole(clean)
        chosen = _chosen(labels, goal, self.pairs, spawn(rng))
        x, y = every[chosen], labels[chosen]
        stamped = deepcopy(trigger)(x)
        target, other, hit = (
            _features(subject, z) for z in (every[labels == goal.target], x, stamped)
        )
        nets = {"model": subject} | ({"against": against} if against is not None else {})
        path = activation_path(subject, x, stamped, goal.target, q=self.q)
        return AnalysisResult(
            goal=goal,
            pairs=len(x),
            asr=asr(predict(subject, stamped).argmax(1), y, goal),
            shown=(x[: self.shown], stamped[: self.shown]),
            attention=self._attention(subject, against, (x, stamped, y), goal),
            view=feature_view(target, other, hit, spawn(rng), method=self.method),
            curves={n: separation_curve(s, clean, trigger, goal=goal) for n, s in nets.items()},
            path=path,
            changes=tac(subject, x, stamped),
            silenced=silenced(subject, path, stamped, y, goal, spawn(rng), draws=self.draws),
            likeness=Likeness(
                cka=_cka(given(subject, x), given(subject, stamped)),
                against=_cka(given(subject, x), given(against, x)) if against is not None else {},
                mmd=self._mmd(target, hit, spawn(rng)),
                centroids=centroids(target, other, hit) if len(target) else {},
            ),
        )

    def _attention(
        self,
        subject: Subject,
        against: Subject | None,
        pairs: tuple[Images, Images, Labels],
        goal: Goal,
    ) -> Attention | None:
        if not available():
            return None
        x, stamped, y = (t[: self.mapped] for t in pairs)
        before, after = (grad_cam(subject, z, goal.target) for z in (x, stamped))
        distance = mean_rate(map_distance(before.values, after.values))
        nets = {} if against is None else {"benign": against, "trojan": subject}
        table = attention_shift(nets, x, stamped, y, goal)
        return Attention(before, after, Shift(distance, before.zero + after.zero), table)

    def _mmd(self, target: Tensor, stamped: Tensor, rng: Generator) -> Discrepancy | None:
        return (
            mmd(target, stamped, rng, permutations=self.permutations) if len(target) > 1 else None
        )


def _check(subject: Subject, against: Subject | None) -> None:
    if against is not None and (against.shape, against.classes) != (subject.shape, subject.classes):
        raise ShapeMismatch(
            f"the model takes {subject.shape} to {subject.classes} classes, the one it is compared "
            f"with {against.shape} to {against.classes}: they must agree"
        )


def _chosen(labels: Tensor, goal: Goal, most: int, rng: Generator) -> Tensor:
    """Return which images are stamped, `(n,)` in a random order."""
    index = goal.applies_to(labels).nonzero().flatten()
    if len(index) < LEAST:
        raise BadImages(
            f"{len(index)} images are of classes that the trigger is for; at least {LEAST} needed"
        )
    return index[torch.randperm(len(index), generator=rng)[:most]]


def _features(subject: Subject, x: Images) -> Tensor:
    with frozen_eval(subject), torch.no_grad():
        return torch.cat(
            [features(subject, some.to(subject.device)).cpu() for some in x.split(256)]
        )


def _cka(one: dict[str, Tensor], other: dict[str, Tensor]) -> dict[str, float]:
    """Return the alignment of stages that both have, by name; of other nets, in their order."""
    pairs = zip(one.items(), other.values(), strict=False)
    return {name: linear_cka(a, b) for (name, a), b in pairs}


# As files: pictures, and beside each what it was drawn from -----------------------------------


def write_case(case: AnalysisResult, folder: Path, names: Sequence[str] = ()) -> list[Path]:
    """Write pictures, and what they were drawn from beside them; return their paths.

    Args:
        case: What the analysis returned.
        folder: Where to; it must exist.
        names: Names of classes.

    Raises:
        UsageError: If a file cannot be written.
    """
    t = case.goal.target
    name = (axis_name(names[t]) if t < len(names) else "") or f"class {t}"
    written = []
    for stem, (data, draw) in {**_inside(case, name), **_looks(case, name)}.items():
        said = {"goal": case.goal, "pairs": case.pairs, "asr": case.asr, stem: data}
        write_json(folder / f"{stem}.json", said)
        written.append(folder / f"{stem}.json")
        if draw is not None:
            draw(folder / f"{stem}.png")
            written.append(folder / f"{stem}.png")
    return written


def _inside(case: AnalysisResult, name: str) -> dict[str, tuple[object, Draw | None]]:
    """Return what is said of features, neurons and channels, and how it is drawn."""
    view, path = {**asdict(case.view), "group_names": GROUPS}, case.path
    return {
        "features": (view, partial(figures.scatter, view=case.view, title="Penultimate features")),
        "separation": (
            case.curves,
            partial(
                figures.separation_lines,
                curves=case.curves,
                title="Neurons that clean and that stamped images light up most",
            ),
        ),
        "path": (
            {"graph": path, "tac": case.changes, "silenced": case.silenced},
            partial(
                figures.path_graph, found=path, title=f"Channels that lead to {name}", name=name
            ),
        ),
        "similarity": (case.likeness, None),
    }


def _looks(case: AnalysisResult, name: str) -> dict[str, tuple[object, Draw | None]]:
    """Return what is said of attribution maps, and how it is drawn; nothing without captum."""
    seen, n = case.attention, len(case.shown[0])
    if seen is None:
        return {}
    out: dict[str, tuple[object, Draw | None]] = {
        "attribution": (
            {"shift": seen.shift, "layer": seen.before.layer},
            partial(
                figures.attribution_rows,
                images=case.shown,
                maps=(seen.before.values[:n], seen.after.values[:n]),
                title=f"What speaks for {name} (Grad-CAM)",
            ),
        )
    }
    if seen.table:
        title = "How far the trigger moves attribution maps"
        out["table19"] = (seen.table, partial(figures.distance_bars, cells=seen.table, title=title))
    return out
