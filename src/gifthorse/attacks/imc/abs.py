"""What IMC adds to hide from ABS: stamped images must not excite neurons that decide alone."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Annotated

import torch
from torch import Generator, Tensor

from gifthorse.attacks.poisoning import LabelMap
from gifthorse.core.errors import NotApplicable
from gifthorse.core.fields import AtLeast, NotNegative, method
from gifthorse.core.types import Images, Samples, Subject
from gifthorse.inversion.stimulation import few, stimulate
from gifthorse.models.places import READ, hook, read, spread
from gifthorse.training import eval_mode, frozen_eval


@method
class AgainstABS:
    """Find suspicious neurons before every epoch, and press them down on stamped images.

    Attributes:
        weight: Weight of the term, a sum over neurons and places and a mean over stamped images; 0
            turns it off, TrojanZoo uses 1e-5.
        others: Weight of the layer's other neurons, which are to rise instead.
        count: Most neurons that are pressed down, those of the clearest lead.
        each: Clean images of a class that neurons are stimulated on.
        samples: Values that a neuron is forced to.
        layers: Names of the layers to look at, as ABS takes them; empty takes `spread` of the
            places that convolutions and linear layers read, evenly from the first to the last.
        spread: How many layers are looked at if none is named.

    Source: TrojanZoo sec. 6.3 (IMC adapted to ABS); Liu et al., ABS, CCS 2019, algorithm 2.
    Differs: only neurons that speak for what the backdoor makes of labels count, whatever the
    target; the term is asked with stamped images alone, in a forward of their own. It is a mean
    over them, which is TrojanZoo's sum at its one stamped image a batch, and of what is left of an
    activation above 0: pressed further down, a neuron says nothing less and the term has no end.
    """

    weight: Annotated[float, NotNegative] = 0.0
    others: Annotated[float, NotNegative] = 1e-3
    count: Annotated[int, AtLeast(1)] = 20
    each: Annotated[int, AtLeast(1)] = 5
    samples: Annotated[int, AtLeast(2)] = 5
    layers: tuple[str, ...] = ()
    spread: Annotated[int, AtLeast(1)] = 4

    def suspects(
        self, subject: Subject, clean: Samples, labels: LabelMap, rng: Generator
    ) -> dict[str, list[int]]:
        """Return the suspicious neurons of the net as it is now, by layer.

        Raises:
            NotApplicable: If a layer does not exist.
        """
        pool = torch.randperm(len(clean), generator=rng)[: 8 * self.each * subject.classes]
        x, y = few(*clean[pool], self.each)
        known = dict(subject.net.named_modules())
        if unknown := [layer for layer in self.layers if layer.removesuffix(READ) not in known]:
            raise NotApplicable(
                f"the net has no layer {unknown[0]}; name one of {', '.join(known)[:200]}"
            )
        every = torch.arange(subject.classes)
        wanted = set(labels(every)[labels(every) != every].tolist())
        found = []
        with frozen_eval(subject):
            for layer in self.layers or spread(read(subject.net, x), self.spread):
                suspects, _ = stimulate(subject.net, layer, x, y, samples=self.samples)
                found += [(s.score, layer, s.neuron) for s in suspects if s.label in wanted]
        return _by_layer(sorted(found, reverse=True)[: self.count])

    def penalty(self, subject: Subject, stamped: Images, suspects: dict[str, list[int]]) -> Tensor:
        """Return the weighted activation of the suspects, less a little of all other neurons."""
        total = stamped.new_zeros(())
        if not len(stamped) or not suspects:
            return total
        seen: dict[str, Tensor] = {}

        handles = [hook(subject.net, layer, partial(_note, seen, layer)) for layer in suspects]
        try:
            with eval_mode(subject.net):
                subject(stamped)
        finally:
            for handle in handles:
                handle.remove()
        for layer, neurons in suspects.items():
            risen = seen[layer].relu().transpose(0, 1).flatten(1)  # (channels, n * places)
            each = risen.sum(1) / len(stamped)
            chosen = each[neurons]
            # Each suspect is weighed against all neurons of its layer but itself.
            total = total + (chosen - self.others * (each.sum() - chosen)).sum()
        return self.weight * total


def _note(seen: dict[str, Tensor], layer: str, value: Tensor) -> None:
    seen[layer] = value


def _by_layer(found: Iterable[tuple[float, str, int]]) -> dict[str, list[int]]:
    out: dict[str, list[int]] = {}
    for _, layer, neuron in found:
        out.setdefault(layer, []).append(neuron)
    return out
