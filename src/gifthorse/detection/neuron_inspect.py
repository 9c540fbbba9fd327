"""NeuronInspect: are the saliency maps of one class oddly sparse, smooth and persistent?"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from gifthorse.core.fields import AtLeast, NotNegative, method
from gifthorse.core.run import Run
from gifthorse.core.stats import mad, median, robust_z
from gifthorse.core.tensors import spawn
from gifthorse.core.types import Finding, Goal, Images, Samples, Subject, Verdict
from gifthorse.data.samples import near
from gifthorse.detection.verdict import Judged, Work, doubt
from gifthorse.detection.weight_signature import by_class
from gifthorse.models.folding import TRIED, frozen


@method
class NeuronInspect:
    """Compare what the classes' logits look at in clean images.

    The map of an image and a class is the largest gradient of the logit over channels, scaled to
    [0, 1]. Three features of the maps are low for a target: the sum (sparse), the sum of the
    absolute Laplacian (smooth), and how far binary maps differ between images (persistent).
    Assumes a visible patch at a fixed place. Needs clean images and gradients: a forward and K
    backward passes of every image.

    Attributes:
        mode: `zoo` weights the features as TrojanZoo does, with its chained exclusive or as
            persistence; `normalized` scales each over the classes and adds them up.
        images: Most images to look at, drawn at random where there are more.
        cut: Above it a pixel of a map counts as active; None takes the median of the map.
        sparse: Weight of the sum in mode `zoo`.
        smooth: Weight of the Laplacian in mode `zoo`.
        persist: Weight of the persistence in mode `zoo`.
        threshold: Robust deviations below the median where suspicion starts.
        floor: Least deviation of a feature, and of the score in mode `zoo`, as a share of the
            median.
        least: Least deviation of the score in mode `normalized`, in deviations of one feature.
        max_batch: Images in one run through the net; fewer take less memory.

    Measured with `benchmarks/detectors.py --detectors neuron_inspect`, and `--set mode=normalized`,
    on 86 to 100 images and four small BadNets (the gift, MNIST, CIFAR-10, GTSRB), each beside a
    clean net: `zoo` calls none of the eight suspicious, with scores of 0.4 to 1.7; `normalized`
    names the wrong class of two BadNets and accuses two clean nets. Neither finds a backdoor here:
    that no class stands out is no reason to trust a net. The exclusive or over all images is close
    to noise, so that `zoo`, too, can name a class by chance.

    Source: Huang et al., NeuronInspect, 2019 (arXiv 1911.07399); weights of TrojanZoo, Table 21,
    under which the persistence alone decides. Differs: clean images for all features (TrojanZoo
    stamps the true trigger); a map is cut at its own median, as 0 makes nearly every pixel active;
    a flat map counts as all ones, not as sparse; in mode `normalized` persistence is the share of
    pixels that differ from the majority of the maps. No trigger is recovered, so a class that
    stands out is only suspicious.
    """

    mode: Literal["zoo", "normalized"] = "zoo"
    images: Annotated[int, AtLeast(1)] = 500
    cut: float | None = None
    sparse: Annotated[float, NotNegative] = 1e-5
    smooth: Annotated[float, NotNegative] = 1e-5
    persist: Annotated[float, NotNegative] = 1.0
    threshold: float = 2.0
    floor: Annotated[float, NotNegative] = 0.05
    least: Annotated[float, NotNegative] = 1.0
    max_batch: Annotated[int, AtLeast(1)] = 64

    def __call__(self, subject: Subject, clean: Samples, rng: Generator, run: Run) -> Verdict:
        """Return the verdict on all classes."""
        work = Work(run)
        if subject.classes < 3:
            words = f"With {subject.classes} classes none can stand out from the others."
            parts = doubt("IN004", words)
        elif len(clean) < 2:
            parts = doubt("IN002", f"Maps of two images or more are compared; got {len(clean)}.")
        else:
            parts = self._judge(*self.features(subject, clean, rng, run))
        return work.judged(self, parts, subject)

    def features(
        self, subject: Subject, clean: Samples, rng: Generator, run: Run
    ) -> tuple[Tensor, str]:
        """Return the three features of every class, and why the run stopped early.

        Args:
            subject: The classifier.
            clean: Clean images of any class.
            rng: Source of the choice of images, where there are too many.
            run: Told of every chunk; asked whether to go on.

        Returns:
            Shape `(3, K)`: sparse and smooth, medians over images, in pixels; and persistent, a
            share in [0, 0.5], or in mode `zoo` a number of pixels. And words, empty if nothing was
            cut short; the features are then of the images seen so far.
        """
        images = near(clean, subject)
        net = frozen(subject.net, images[torch.arange(min(TRIED, len(images)))][0])
        order = torch.randperm(len(clean), generator=spawn(rng))[: self.images]
        sums, edges, active = [], [], torch.zeros(())
        seen, stopped = 0, ""
        for index in order.split(self.max_batch):
            maps = saliency(net, images[index][0])  # (b, K, H, W)
            sums.append(maps.sum((2, 3)))
            edges.append(laplacian(maps).abs().sum((2, 3)))
            active = active.to(maps.device) + self._active(maps).sum(0)
            seen += len(index)
            run.charge(len(index) * (1 + subject.classes) / 2)
            run.report(seen, len(order), "images explained")
            stopped = run.stop_reason if seen < len(order) else ""
            if stopped:
                break
        medians = [torch.cat(rows).quantile(0.5, dim=0) for rows in (sums, edges)]
        return torch.stack([*medians, self._persistence(active, seen)]).cpu(), stopped

    def scores(self, features: Tensor) -> Tensor:
        """Return one score a class, `(K,)`, from features `(3, K)`; low is suspicious."""
        if self.mode == "zoo":
            weights = features.new_tensor([self.sparse, self.smooth, self.persist])
            return weights @ features
        scaled = [(f - f.mean()) / mad(f, self._floor(f)) for f in features]
        return torch.stack(scaled).sum(0)

    def _judge(self, features: Tensor, stopped: str) -> Judged:
        if stopped:
            words = f"Not all images were looked at: {stopped}; scan again with a higher limit."
            return doubt("IN003", words)
        if not features.isfinite().all():
            return doubt("FS005", "The net gives gradients that are not finite numbers.")
        values = self.scores(features)
        floor = self.least if self.mode == "normalized" else self._floor(values)
        below = robust_z(-values, floor)
        k = int(below.argmax())
        score = max(0.0, below[k].item())
        names = ("sparse", "smooth", "persist")
        facts = {"lowest_class": float(k)} | {
            key: number
            for name, f in zip(names, features, strict=True)
            for key, number in ((name, f[k].item()), (f"{name}_median", median(f).item()))
        }
        return score, self._finding(score, k, facts), facts | by_class(values)

    def _finding(self, score: float, k: int, facts: dict[str, float]) -> Finding:
        seen = f"{score:.1f} robust deviations below the median"
        if score < self.threshold:
            message = (
                f"The saliency maps of class {k} are the sparsest, smoothest and most alike; they "
                f"do not stand out ({seen})."
            )
            return Finding("BD010", "INFO", score, message, evidence=facts)
        message = (
            f"Whatever the image, class {k} looks at fewer and more constant places than the other "
            f"classes ({seen}). No trigger was recovered, so nothing is confirmed."
        )
        return Finding("BD010", "MEDIUM", score, message, Goal(k), evidence=facts)

    def _active(self, maps: Tensor) -> Tensor:
        if self.cut is not None:
            return maps > self.cut
        return maps > maps.flatten(2).median(2).values[..., None, None]

    def _persistence(self, active: Tensor, seen: int) -> Tensor:
        """Return the persistence `(K,)` from how often each pixel was active, `(K, H, W)`."""
        if self.mode == "zoo":  # a chain of exclusive ors leaves the parity
            return (active % 2).sum((1, 2)).float()
        differ = torch.minimum(active, seen - active)  # from the majority
        return differ.float().mean((1, 2)) / seen

    def _floor(self, values: Tensor) -> float:
        return max(1e-12, self.floor * abs(median(values).item()))


def saliency(net: nn.Module, x: Images) -> Tensor:
    """Return what each logit looks at: `max_c |dz_t / dx|`, scaled to [0, 1] map by map.

    All classes share one forward pass. A map with no contrast is all ones.

    Args:
        net: A frozen net in eval mode.
        x: Images `(N, C, H, W)`.

    Returns:
        Shape `(N, K, H, W)`.

    Source: Huang et al., NeuronInspect, 2019.
    """
    x = x.detach().clone().requires_grad_()
    logits = net(x)
    last = logits.shape[1] - 1
    maps = []
    for t in range(last + 1):
        (grad,) = torch.autograd.grad(logits[:, t].sum(), x, retain_graph=t < last)
        maps.append(grad.abs().amax(1))
    raw = torch.stack(maps, 1)
    low, high = raw.amin((2, 3), keepdim=True), raw.amax((2, 3), keepdim=True)
    contrast = high - low
    flat = contrast <= 1e-6 * high
    return torch.where(flat, torch.ones_like(raw), (raw - low) / contrast.masked_fill(flat, 1))


def laplacian(maps: Tensor) -> Tensor:
    """Return the 4-neighbor Laplacian of maps `(N, K, H, W)`, without the border.

    Example:
        >>> laplacian(torch.eye(3).view(1, 1, 3, 3)).item()
        -4.0
    """
    kernel = maps.new_tensor([[0.0, 1.0, 0.0], [1.0, -4.0, 1.0], [0.0, 1.0, 0.0]])
    flat = F.conv2d(maps.flatten(0, 1)[:, None], kernel[None, None])
    return flat.view(*maps.shape[:2], *flat.shape[2:])
