"""A calibration of one's own: scan models of known truth, and fit what a score means."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from gifthorse import __version__
from gifthorse.core.atomic import atomic
from gifthorse.core.errors import GifthorseError, UsageError
from gifthorse.core.files import parse_json, read_file
from gifthorse.core.stats import auroc
from gifthorse.core.types import Confidence, ProgressCallback, Report
from gifthorse.detection.calibration import Calibration, fit
from gifthorse.detection.calibrations import dumped
from gifthorse.detection.fusion import Evidence, Fusion, KnownEvidence, evidence, fuse
from gifthorse.models.opening import digest_now
from gifthorse.workflows.opening import Inputs
from gifthorse.workflows.scan import Request, chosen, scan

Floats = NDArray[np.float64]
TRUTH = "truth.csv"
CLEAN = "clean"
UNNAMED = "unnamed"  # the family of a backdoored model that the table says nothing of
LEAST = 5  # models of each kind, below which a line through their scores says nothing
MOST_BYTES, FAMILY = 2**24, 100
ALONE, FOLDS = 200, 20  # most models of a kind that are left out one by one; parts of more


@dataclass(frozen=True)
class KnownModel:
    """A model whose truth is known.

    Attributes:
        path: Its file or folder.
        target: What it was planted for, in words; `clean` for nothing.
        images: Its clean images; None for those of the whole table.
        family: What kind of trigger was planted, in words; empty if nobody says.
    """

    path: Path
    target: str
    images: str | None = None
    family: str = ""

    @property
    def backdoored(self) -> bool:
        """Whether something was planted."""
        return self.target != CLEAN


def known_models(folder: Path) -> list[KnownModel]:
    """Return the models of a folder, as its `truth.csv` has them.

    The table has a header and the columns `model` (from the folder), `target` (`clean`, or what
    was planted: a class) and, if they have not all the same, `images`; and, for a probability of
    each family of triggers by several detectors, `family`.

    Raises:
        UsageError: If there is no such table, a column or a model is missing, or a kind has fewer
            than five.
    """
    path = folder / TRUTH
    try:
        rows = list(csv.DictReader(io.StringIO(read_file(path, MOST_BYTES).decode("utf-8-sig"))))
    except (UsageError, UnicodeDecodeError, csv.Error) as error:
        raise UsageError(
            f"{folder} needs a table {TRUTH} with the columns model and target: {error}"
        ) from error
    models = []
    for number, row in enumerate(rows, 2):
        name, target = ((row.get(key) or "").strip() for key in ("model", "target"))
        if not name or not target:
            raise UsageError(f"line {number} of {path} lacks a model or its target")
        if not (folder / name).exists():
            raise UsageError(f"line {number} of {path} names {name}, which is not in {folder}")
        images = (row.get("images") or "").strip() or None
        family = (row.get("family") or "").strip()[:FAMILY]
        models.append(KnownModel(folder / name, target.lower(), images, family))
    bad = sum(m.backdoored for m in models)
    if min(bad, len(models) - bad) < LEAST:
        raise UsageError(
            f"{path} has {len(models) - bad} clean and {bad} backdoored models: give {LEAST} or "
            "more of each"
        )
    return models


@dataclass(frozen=True)
class ModelScores:
    """What the detectors said of a model of known truth.

    Attributes:
        model: Its name.
        sha256: Of its bytes.
        target: As in the table.
        evidence: By detector; without those that came to no verdict.
        reason: Why there is none, if there is none.
        family: What kind of trigger was planted, in words.
        classes: How many the model has.
        sides: Height and width of its images.
    """

    model: str
    sha256: str
    target: str
    evidence: Mapping[str, Evidence]
    reason: str = ""
    family: str = ""
    classes: int = 0
    sides: tuple[int, int] = (0, 0)


def judge(
    model: KnownModel,
    inputs: Inputs,
    request: Request,
    kept: Path | None,
    progress: ProgressCallback | None,
) -> ModelScores:
    """Scan a model with the detectors of a request, unless its scores are kept.

    Args:
        model: The model.
        inputs: How to open it, and the images of those models that name none.
        request: What is to run; no other detector joins in.
        kept: File of its scores; None keeps nothing.
        progress: Told of every round.
    """
    given = inputs if model.images is None else replace(inputs, images=model.images)
    only = replace(request, detectors=tuple(chosen(request)))
    asked = _asked(model, given, only)
    if kept is not None and kept.exists():
        before = _read(kept)
        if before.pop("asked") == asked:
            return ModelScores(**before | {"target": model.target, "family": model.family})
    found = scored(scan(str(model.path), given, only, progress), model)
    if kept is not None:
        text = json.dumps(asdict(found) | {"asked": asked})
        with atomic(kept) as file:
            file.write(text.encode())
    return found


def _asked(model: KnownModel, inputs: Inputs, request: Request) -> str:
    """Return a digest of a model's bytes and of all that its scores depend on."""
    try:
        content = digest_now(model.path)
    except GifthorseError:
        content = ""  # whatever is wrong with it, the scan says so
    parts = replace(inputs, device="cpu"), replace(request, resume=None, command="")
    return hashlib.sha256(repr((content, *parts)).encode()).hexdigest()


def scored(report: Report, model: KnownModel) -> ModelScores:
    """Return the scores in a report, of detectors that came to a verdict."""
    said = {v.method: evidence(v) for v in report.verdicts if v.label != "INCONCLUSIVE"}
    made = report.preparation
    return ModelScores(
        model.path.name,
        report.origin.sha256,
        model.target,
        said,
        "" if said else report.reason,
        model.family,
        len(made.per_class) if made is not None else 0,
        made.shape[1:] if made is not None else (0, 0),
    )


def calibrated(name: str, found: Iterable[ModelScores]) -> dict[str, Calibration]:
    """Return a calibration of each detector that scored enough models of both kinds."""
    rows = list(found)
    out = {}
    for detector in dict.fromkeys(key for row in rows for key in row.evidence):
        kinds: tuple[list[float], list[float]] = ([], [])
        for row in rows:
            if detector in row.evidence:
                kinds[row.target != CLEAN].append(round(row.evidence[detector].score, 3))
        if min(map(len, kinds)) >= LEAST:
            out[detector] = fit(name, *map(sorted, kinds))
    return out


def together(name: str, found: Sequence[ModelScores]) -> list[Fusion]:
    """Return what reads all detectors at once, if there are several and models of both kinds.

    Only models count on which all of them came to a verdict.
    """
    every = list(dict.fromkeys(key for row in found for key in row.evidence))
    rows = [row for row in found if len(row.evidence) == len(every)]
    bad = sum(row.target != CLEAN for row in rows)
    if len(every) < 2 or min(bad, len(rows) - bad) < LEAST:
        return []
    counts, sides = [row.classes for row in rows], [side for row in rows for side in row.sides]
    known = [
        KnownEvidence(row.evidence, None if row.target == CLEAN else row.family or UNNAMED)
        for row in rows
    ]
    spans = (min(counts), max(counts)), (min(sides), max(sides))
    return [fuse(name, every, known, classes=spans[0], sides=spans[1])]


def written(name: str, found: Sequence[ModelScores], request: Request) -> str:
    """Return a calibration file of models that were judged, with how it was made.

    Raises:
        UsageError: If no detector came to a verdict on five models of each kind.
    """
    bags = calibrated(name, found)
    if not bags:
        reasons = "; ".join(sorted({row.reason for row in found if row.reason})[:3])
        raise UsageError(
            f"no detector came to a verdict on {LEAST} clean and {LEAST} backdoored models"
            + (f": {reasons}" if reasons else "")
        )
    made: dict[str, object] = {
        "versions": {
            "gifthorse": __version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
        "command": request.command,
        "seed": request.seed,
        "models": [
            {"model": row.model, "sha256": row.sha256, "target": row.target} for row in found
        ],
    }
    return dumped(name, bags, made, together(name, found))


@dataclass(frozen=True)
class Quality:
    """How well a detector's scores tell its two kinds of models apart.

    Attributes:
        auc: Area under the ROC curve, with the central 95 % of bootstrap resamples.
        entropy: Cross-entropy, in nats, of each model's probability by a fit without it;
            0.693 knows nothing.
        alarms: Clean models with a probability of a half or more, by the same fits.
        found: Backdoored models with one.
    """

    auc: Confidence
    entropy: float
    alarms: int
    found: int


def quality(bag: Calibration, *, resamples: int = 500) -> Quality:
    """Return how well a calibration holds on the models that it was made of, each left out once.

    A model is left out alone if its kind has at most 200, else with a twentieth of it.

    Both kinds weigh the same in the cross-entropy, whatever their numbers. A kind with one model
    cannot be left out, and counts as it was fitted.
    """
    rng = np.random.default_rng(0)
    good, bad = np.asarray(bag.clean), np.asarray(bag.backdoored)
    drawn = [
        _area(rng.choice(good, len(good)), rng.choice(bad, len(bad))) for _ in range(resamples)
    ]
    low, high = np.quantile(drawn, [0.025, 0.975]).tolist()
    chances = [_left_out(bag, bad) for bad in (False, True)]
    entropy = -float(np.log(1 - chances[0]).mean() + np.log(chances[1]).mean()) / 2
    alarms, found = (int((c >= 0.5).sum()) for c in chances)
    area = Confidence(_area(good, bad), low, high, bag.name)
    return Quality(area, entropy, alarms, found)


def _area(good: Floats, bad: Floats) -> float:
    return auroc(torch.from_numpy(good), torch.from_numpy(bad))


def _left_out(bag: Calibration, bad: bool) -> Floats:
    """Return each model's probability by a fit without it, of one kind."""
    scores = bag.backdoored if bad else bag.clean
    out = np.empty(len(scores))
    folds = len(scores) if len(scores) <= ALONE else FOLDS
    for fold in range(folds):
        rest = tuple(s for i, s in enumerate(scores) if i % folds != fold) or scores
        clean, backdoored = (bag.clean, rest) if bad else (rest, bag.backdoored)
        line = fit(bag.name, clean, backdoored, resamples=0)
        out[fold::folds] = [line.confidence(score).value for score in scores[fold::folds]]
    return out


def _read(path: Path) -> dict[str, Any]:
    try:
        kept = parse_json(read_file(path, MOST_BYTES))
        said = {str(k): _evidence(v) for k, v in kept["evidence"].items()}
        words = {key: str(kept[key]) for key in ("model", "sha256", "target", "reason", "asked")}
        height, width = map(int, kept["sides"])
        size = {"classes": int(kept["classes"]), "sides": (height, width)}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(f"{path} holds no scores that were kept: remove it") from error
    return {**words, **size, "evidence": said}


def _evidence(kept: Mapping[str, Any]) -> Evidence:
    target = kept["target"]
    number = None if target is None else int(target)
    return Evidence(float(kept["score"]), number, float(kept["transfer"]))
