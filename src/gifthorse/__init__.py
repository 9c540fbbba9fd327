"""Look a downloaded image classifier in the mouth: find backdoors before you deploy it.

The names below are the public face; each comes from the package where it lives. They are loaded
when first asked for, so that `import gifthorse` stays quick.

Example:
    >>> import torch
    >>> import gifthorse as gh
    >>> sorted(gh.PRESETS), "pixel_quick" in gh.DETECTORS, "resnet20" in gh.NETS
    (['quick', 'standard', 'thorough'], True, True)
    >>> "badnet" in gh.ATTACKS, "strip" in gh.FILTERS, "fine_pruning" in gh.REMEDIES
    (True, True, True)
    >>> "pixel" in {name.split("_")[0] for name in gh.INVERTERS}
    True

    A subject is a net on raw pixels, samples are labeled images, a run limits and watches:

    >>> pixels = torch.arange(40 * 3 * 8 * 8).remainder(256).view(40, 3, 8, 8).byte()
    >>> samples: gh.Samples = gh.InMemory(pixels, labels=torch.arange(40) % 4, classes=4)
    >>> net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 4))
    >>> subject = gh.Subject(net, samples.shape, samples.classes)
    >>> rng, run = torch.Generator().manual_seed(0), gh.Run(budget=500)
    >>> verdict: gh.Verdict = gh.DETECTORS["weight_signature"](subject, samples, rng, run)
    >>> verdict.label, [goal.target for goal in verdict.coverage] == list(range(4))
    ('NO BACKDOOR FOUND', True)
    >>> finding: gh.Finding = verdict.findings[0]
    >>> finding.severity, gh.Goal(target=2).applies_to(torch.tensor([1, 2])).tolist()
    ('INFO', [True, False])

    Files are opened without running anything in them, and scanned with a few clean images:

    >>> gift, clean = "examples/gift/gift.safetensors", "examples/gift/clean.npz"
    >>> gh.inspect(gift).tensors, gh.load(gift).classes
    (32, 43)
    >>> inputs = gh.Inputs(clean, limit=43, device="cpu")
    >>> gh.open_model(gift, inputs).subject.shape
    (3, 32, 32)
    >>> request = gh.Request(detectors=("weight_signature",))
    >>> report: gh.Report = gh.scan(gift, inputs, request)
    >>> report.origin.arch, report.verdicts[0].method
    ('tiny', 'weight_signature')
    >>> all(callable(f) for f in (gh.compare, gh.filter_images, gh.repair))
    True
    >>> gh.Trigger.__module__
    'gifthorse.core.types'
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gifthorse.attacks import ATTACKS
    from gifthorse.core.run import Run
    from gifthorse.core.types import (
        Finding,
        Goal,
        Report,
        Samples,
        Subject,
        Trigger,
        Verdict,
    )
    from gifthorse.data import InMemory
    from gifthorse.detection import DETECTORS, PRESETS
    from gifthorse.filtering import FILTERS
    from gifthorse.inversion import INVERTERS
    from gifthorse.models import NETS, inspect, load
    from gifthorse.remedies import REMEDIES
    from gifthorse.workflows.compare import compare
    from gifthorse.workflows.filter import screen as filter_images
    from gifthorse.workflows.opening import Inputs
    from gifthorse.workflows.opening import opened as open_model
    from gifthorse.workflows.repair import repair
    from gifthorse.workflows.scan import Request, scan

__version__ = "1.0.0rc1"

# Where each public name lives: package, and its name there if that is another one.
_HOMES = {
    "ATTACKS": "attacks",
    "DETECTORS": "detection",
    "FILTERS": "filtering",
    "INVERTERS": "inversion",
    "NETS": "models",
    "PRESETS": "detection",
    "REMEDIES": "remedies",
    "Finding": "core.types",
    "Goal": "core.types",
    "InMemory": "data",
    "Inputs": "workflows.opening",
    "Report": "core.types",
    "Request": "workflows.scan",
    "Run": "core.run",
    "Samples": "core.types",
    "Subject": "core.types",
    "Trigger": "core.types",
    "Verdict": "core.types",
    "compare": "workflows.compare",
    "filter_images": "workflows.filter:screen",
    "inspect": "models",
    "load": "models",
    "open_model": "workflows.opening:opened",
    "repair": "workflows.repair",
    "scan": "workflows.scan",
}

__all__ = [
    "ATTACKS",
    "DETECTORS",
    "FILTERS",
    "INVERTERS",
    "NETS",
    "PRESETS",
    "REMEDIES",
    "Finding",
    "Goal",
    "InMemory",
    "Inputs",
    "Report",
    "Request",
    "Run",
    "Samples",
    "Subject",
    "Trigger",
    "Verdict",
    "compare",
    "filter_images",
    "inspect",
    "load",
    "open_model",
    "repair",
    "scan",
]


def __getattr__(name: str) -> Any:
    """Load a public name when it is first asked for."""
    if name not in _HOMES:
        raise AttributeError(f"module 'gifthorse' has no attribute {name!r}")
    home, _, there = _HOMES[name].partition(":")
    found = getattr(import_module(f"gifthorse.{home}"), there or name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    """List the public names, loaded or not."""
    return sorted({*globals(), *__all__})
