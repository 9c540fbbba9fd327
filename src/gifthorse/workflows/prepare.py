"""From a net and clean images to a subject: normalization found or checked, and sanity."""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from gifthorse.core.errors import BadImages, BadOption, UnfitNet
from gifthorse.core.memory import VALUES
from gifthorse.core.resizing import Resize
from gifthorse.core.types import (
    Finding,
    Images,
    Normalization,
    Origin,
    Preparation,
    Subject,
    Tried,
)
from gifthorse.data.gallery import Gallery, balanced
from gifthorse.data.samples import InMemory, whole
from gifthorse.models.normalize import BGR, NORMALIZATIONS, STORED, Classifier, blue_first
from gifthorse.models.outputs import Output, head_of, locate, reason, side_that_runs
from gifthorse.training import predict
from gifthorse.workflows.ordering import found_order
from gifthorse.workflows.sanity import (
    Row,
    SanityThresholds,
    accurate,
    beats,
    behavior,
    measured,
    sized,
    unlabeled,
)

log = logging.getLogger("gifthorse")

LARGE = 3 * 64 * 64  # numbers in an image from which nets are slow enough to try less
FEWEST = 16  # images that a normalization is measured on, however large they are


@dataclass(frozen=True, eq=False)
class Prepared:
    """A subject ready to be examined, its images, and what was found on the way.

    Attributes:
        subject: The net behind the chosen normalization.
        samples: Clean images, all with labels (the model's own where none were given).
        preparation: The record for the report.
        checks: Findings; any of severity HIGH means that no verdict is possible.
        resize: How its images came to their size; None if they had it.
        blind: Whether noise stands for images, since there are none.
    """

    subject: Subject
    samples: InMemory
    preparation: Preparation
    checks: tuple[Finding, ...]
    resize: Resize | None = None
    blind: bool = False


def candidates(channels: int, *, reverse: bool = True) -> tuple[Normalization, ...]:
    """Return the normalizations that `auto` tries on images with this many channels.

    Args:
        channels: 1 or 3.
        reverse: Whether those for nets that read blue first are among them.
    """
    fitting = [n for n in NORMALIZATIONS.values() if len(n.mean) in (1, channels)]
    fitting = [n for n in fitting if not (n.name == "mnist" and channels == 3)]
    if channels != 3 or not reverse:
        return tuple(fitting)
    return tuple(fitting) + tuple(blue_first(n) for n in fitting)


def parse(text: str) -> Normalization | None:
    """Read `--normalize`: a name, also with `-bgr`, `MEAN/STD` with commas, or `auto` (None).

    Raises:
        BadOption: If it is none of these.

    Example:
        >>> parse("0.5,0.5,0.5/0.25,0.25,0.25").std
        (0.25, 0.25, 0.25)
    """
    if text == "auto":
        return None
    if text in NORMALIZATIONS:
        return NORMALIZATIONS[text]
    if text.endswith(BGR) and text.removesuffix(BGR) in NORMALIZATIONS:
        return blue_first(NORMALIZATIONS[text.removesuffix(BGR)])
    mean, slash, std = text.partition("/")
    try:
        means = tuple(float(v) for v in mean.split(","))
        stds = tuple(float(v) for v in std.split(","))
    except ValueError:
        slash = ""
        means = stds = ()
    finite = all(math.isfinite(v) for v in (*means, *stds))
    if not slash or len(means) != len(stds) or not finite or min(stds, default=0) <= 0:
        known = ", ".join(["auto", *NORMALIZATIONS])
        raise BadOption(f"--normalize takes {known} or MEAN/STD such as 0.5/0.25; got {text!r}")
    return Normalization("custom", means, stds)


def prepare(
    net: nn.Module,
    classes: int,
    gallery: Gallery,
    *,
    origin: Origin = Origin(),
    chosen: Normalization | None = None,
    claimed: Normalization | None = None,
    thresholds: SanityThresholds = SanityThresholds(),
    reorder: bool = False,
) -> Prepared:
    """Put a net behind its normalization and see whether it does its job on the clean images.

    Every candidate is measured, also when one was named, so that a wrong choice shows. With labels
    the best is the most accurate, ties broken by the likelihood of the labels; without, the one
    under which the images tell most about the predictions: confident ones, of many classes.

    Args:
        net: Maps normalized images to logits, or to something that holds them; see `locate`.
        classes: Number of logits that it ought to have, 0 if nobody knows.
        gallery: Clean images; label -1 where unknown. Those without a label are left out if others
            have one.
        origin: Where the net came from.
        chosen: The normalization that the user named; None searches.
        claimed: What the file's metadata says; used unless another one does better.
        thresholds: What counts as sane.
        reorder: Whether classes that seem to be numbered in another order than the model's are
            renumbered as the model has them; else it is only said.

    Raises:
        UnfitNet: If the net cannot be run on the images, or returns no logits.
        BadImages: If a label names a class that the net does not have.
    """
    samples, gallery = _labeled(gallery)
    x, y = whole(samples)
    named = [n for n in (chosen, claimed) if n is not None]
    output = _located(net, x, named, classes, origin)
    classes, labeled = output.classes, bool((y >= 0).all())
    _check_labels(y, output)
    some = _some(x, y)
    rows = _measure(net, output, x[some], y[some] if labeled else None, named)
    order = found_order(rows, y[some], thresholds) if labeled else None
    if order is not None and reorder:
        y, gallery = order.of(y), order.renumbered(gallery)
        rows, order = _again(rows, y[some]), None
    first, why = _pick([row.tried for row in rows], chosen, claimed, thresholds)
    row = next(row for row in rows if row.tried == first)
    seen = row.logits  # of some images: in larger batches they would differ in the last bits
    if len(some) < len(x):
        row = _measured(net, output, x, y if labeled else None, first.normalization)
    pick, logits = row.tried, row.logits
    tried = tuple(pick if other.tried == first else other.tried for other in rows)
    subject = _subject(net, pick.normalization, output, x, _told(origin, output))
    samples = InMemory(samples.images, y if labeled else logits.argmax(1), classes)
    preparation = _record(gallery, samples, tried, pick, why)
    checks = [*sized(preparation), *behavior(subject, x[some], seen)]
    checks += (
        accurate(preparation, pick, logits, y, thresholds, order.hint if order else "")
        if labeled
        else unlabeled(rows, first, bool(named), thresholds)
    )
    return Prepared(subject, samples, preparation, tuple(checks))


def _record(
    gallery: Gallery, samples: InMemory, tried: tuple[Tried, ...], pick: Tried, why: str
) -> Preparation:
    return Preparation(
        source=gallery.source,
        images=len(samples),
        per_class=tuple(samples.labels.bincount(minlength=samples.classes).tolist()),
        labels_from=gallery.labels_from if pick.accuracy.trials else "model",
        class_names=gallery.class_names,
        shape=samples.shape,
        normalization=pick.normalization,
        how=why,
        tried=tried,
        accuracy=pick.accuracy,
        notes=gallery.notes,
        sha256=gallery.sha256,
    )


def _subject(
    net: nn.Module, n: Normalization, output: Output, x: Images, origin: Origin
) -> Subject:
    """Return the net behind its normalization, with the name of the layer that makes the logits."""
    model = Classifier(net, n, x.shape[1], output).eval()
    channels, height, width = x.shape[1:]
    subject = Subject(model, (channels, height, width), output.classes, origin)
    model.logits_layer = head_of(model, x[:2].to(subject.device))
    return subject


def _labeled(gallery: Gallery) -> tuple[InMemory, Gallery]:
    """Return the images that have a label, if any has; the gallery notes the others."""
    samples = gallery.samples
    known = samples.labels >= 0
    if known.all() or not known.any():
        return samples, gallery
    kept = InMemory(samples.images[known], samples.labels[known], samples.classes)
    words = f"{int((~known).sum()):,} images without a label left out"
    return kept, replace(gallery, notes=(*gallery.notes, words))


def _told(origin: Origin, output: Output) -> Origin:
    """Return the origin with what was taken of the net's output."""
    if not output.words:
        return origin
    log.warning("%s", output.words)
    return replace(origin, notes=(*origin.notes, output.words))


def _located(
    net: nn.Module, x: Images, named: Sequence[Normalization], classes: int, origin: Origin
) -> Output:
    """Return the same as `_output`; an error knows where the net came from."""
    try:
        return _output(net, x, named, classes)
    except UnfitNet as error:
        error.origin = origin
        raise


def _output(net: nn.Module, x: Images, named: Sequence[Normalization], classes: int) -> Output:
    """Return where the logits are, from what the net makes of images under any normalization."""
    device, failed = Subject(net, (0, 0, 0), 0).device, ""
    for n in dict.fromkeys([*named, *candidates(x.shape[1])]):
        some = Classifier(net, n, x.shape[1]).normalize(x[[0, -1]].to(device))
        try:
            return locate(net, some, classes)
        except UnfitNet:
            raise
        except Exception as error:
            failed = failed or reason(error)
    channels, height, width = x.shape[1:]
    side = side_that_runs(net, channels)
    advice = (
        f"it runs on {side}x{side}: give --input-size {side}x{side}"
        if side
        else "it runs on no usual size either: give its own with --input-size HxW, or see --arch"
    )
    raise UnfitNet(
        f"the net fails on images of {height}x{width} pixels and {channels} "
        f"channel{'s' * (channels != 1)} ({failed}); {advice}",
        rule="IN004",
    )


def _check_labels(y: Tensor, output: Output) -> None:
    if int(y.max()) >= output.classes:
        taken = f" ({output.words})" if output.words else ""
        raise BadImages(
            f"the images have a class {int(y.max())}, but the model only has classes 0 to "
            f"{output.classes - 1}{taken}: are these images of another data set?"
        )


def _pick(
    tried: Sequence[Tried],
    chosen: Normalization | None,
    claimed: Normalization | None,
    thresholds: SanityThresholds,
) -> tuple[Tried, str]:
    """Return the row to use and why: the user's word, the file's if it holds, or the best."""
    best = tried[0]
    if chosen is not None:
        return next(t for t in tried if t.normalization == chosen), "--normalize"
    if claimed is not None:
        row = next(t for t in tried if t.normalization == claimed)
        where = "layer" if claimed.name == STORED else "metadata"
        if not row.accuracy.trials:
            return row, f"the file's own {where}, not checked: there are no labels"
        if not beats(best, row, thresholds):
            return row, f"the file's own {where}, checked"
    return best, f"best of {len(tried)} tried"


def _some(x: Tensor, y: Tensor) -> Tensor:
    """Return which images the candidates are measured on: all, unless images are large.

    There are a dozen and more, and a large net takes a second for some images. The one that is
    used is then measured on all.
    """
    some = balanced(y.cpu().numpy(), max(FEWEST, VALUES // 2 // x[0].numel()))
    return torch.from_numpy(some)


def _measured(net: nn.Module, output: Output, x: Tensor, y: Tensor | None, n: Normalization) -> Row:
    channels, height, width = x.shape[1:]
    model = Classifier(net, n, channels, output).eval()
    return measured(n, predict(Subject(model, (channels, height, width), output.classes), x), y)


def _measure(
    net: nn.Module,
    output: Output,
    x: Tensor,
    y: Tensor | None,
    named: Sequence[Normalization],
) -> list[Row]:
    """Return the table of candidates, best first; those that the net fails on are left out."""
    rows = []
    large = x[0].numel() > LARGE
    todo = deque(dict.fromkeys([*named, *candidates(x.shape[1], reverse=not large)]))
    while todo:
        n = todo.popleft()
        try:
            rows.append(_measured(net, output, x, y, n))
        except Exception as error:
            if n in named[:1]:
                words = f"the net fails with normalize={n.name}: {reason(error)}"
                raise UnfitNet(words, rule="IN004") from error
        if large and not todo and rows and x.shape[1] == 3:  # the best of them, blue first
            best, large = max(rows, key=_rank).tried.normalization, False
            todo += [] if best.bgr else [blue_first(best)]
    return sorted(rows, key=_rank, reverse=True)


def _again(rows: Sequence[Row], y: Tensor) -> list[Row]:
    """Return the same table for other labels."""
    made = [measured(row.tried.normalization, row.logits, y) for row in rows]
    return sorted(made, key=_rank, reverse=True)


def _rank(row: Row) -> tuple[float, float]:
    return row.tried.accuracy.value, row.merit
