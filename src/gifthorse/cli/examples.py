"""One example of each command, shown below its help."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType

from typer.models import CommandInfo

EXAMPLES: Mapping[str, str] = MappingProxyType(
    {
        "analyze": "model.safetensors --images clean/ --trigger report.json -o look/",
        "attack": "badnet --data gtsrb --net tiny --target 14 -o bad.safetensors",
        "bench export": "plans/smoke.toml -o records.csv",
        "bench import": "record/badnet_0_1 --store runs/mine --data cifar10:test",
        "bench leaderboard": "plans/smoke.toml -o site/",
        "bench plan": "plans/smoke.toml",
        "bench query": "plans/smoke.toml 'select attack, avg(asr) from records group by 1'",
        "bench report": "plans/smoke.toml --format markdown",
        "bench resume": "plans/smoke.toml",
        "bench run": "plans/smoke.toml --workers 2",
        "bench status": "plans/smoke.toml",
        "calibrate": "models/ --images clean/ -o own.json",
        "compare-triggers": "model.pt --images clean/ --pairs 0:5,3:1 -o compared/",
        "doctor": "--device cpu",
        "evidence": "own.json",
        "explain": "pixel_quick",
        "filter": "incoming/ --model model.safetensors --images clean/ -o suspicious",
        "index": "out/ -o site/",
        "inspect": "model.pt",
        "list": "detectors",
        "repair": "model.pt --images clean/ --scan report.json -o fixed.safetensors",
        "report": "out/ -f md -o sarif=all.sarif",
        "sample": "--data gtsrb --per-class 2 -o clean.npz",
        "scan": "model.pt --images clean/ -o html=report.html",
        "train": "--data gtsrb --net tiny -o twin.safetensors",
    }
)


def exemplify(commands: Iterable[CommandInfo], group: str = "") -> None:
    """Put its example below the help of each command.

    Args:
        commands: As they are registered.
        group: What comes before their names.
    """
    for command in commands:
        name = command.name or getattr(command.callback, "__name__", "").replace("_", "-")
        full = f"{group} {name}".strip()
        command.epilog = f"Example: gifthorse {full} {EXAMPLES[full]}"
