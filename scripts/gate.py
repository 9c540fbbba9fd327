"""Go from an empty directory to a red gate, and print each command, its seconds and its exit.

    python scripts/gate.py [FOLDER]

In `FOLDER`, a temporary one by default, it makes a sample repository with the workflow and the
hooks of `docs/gates.md` and clean images, installs this tree into a fresh environment, and then
pushes two models under one name: the twin, which leaves the gate green, and the gift, which turns
it red. The scan is the step of `action.yml`, run as a runner runs it. The step that installs takes
PyTorch from its own index; here it comes from the one that pip is set to.
"""

from __future__ import annotations

import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import yaml
from PIL import Image
from scripts.runner import ROOT, Runner, Stepped, git

GIFT = ROOT / "examples" / "gift"
MODEL, WORKFLOW = "nets/model.safetensors", ".github/workflows/models.yml"
CLEAN, CONFIG = "tests/clean", ".pre-commit-config.yaml"


def blocks() -> tuple[str, str]:
    """Return the workflow and the hooks' settings that the page on gates shows."""
    page = (ROOT / "docs" / "gates.md").read_text(encoding="utf-8")
    workflow, hooks = re.findall(r"^```yaml\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    return workflow, hooks


def sample(folder: Path) -> None:
    """Make a repository with the page's two files and clean images, and no model yet."""
    for name, text in zip((WORKFLOW, CONFIG), blocks(), strict=True):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    with np.load(GIFT / "clean.npz") as clean:
        for i, (pixels, label) in enumerate(zip(clean["images"], clean["labels"], strict=True)):
            path = folder / CLEAN / f"{label:02}" / f"{i:03}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path)
    git(folder, "init", "-q", "-b", "main")
    git(folder, "add", "-A")
    git(folder, "commit", "-qm", "Gate models")


def pushed(runner: Runner, model: Path, **more: str) -> Stepped:
    """Commit a model under the sample's name, and run the scan that the workflow asks for."""
    path = runner.workspace / MODEL
    path.parent.mkdir(exist_ok=True)
    shutil.copy(model, path)
    git(runner.workspace, "add", MODEL)
    git(runner.workspace, "commit", "-qm", f"Take {model.stem}")
    before = git(runner.workspace, "rev-parse", "HEAD~1")
    workflow = yaml.safe_load((runner.workspace / WORKFLOW).read_text(encoding="utf-8"))
    given = workflow["jobs"]["models"]["steps"][-1]["with"]
    inputs = {key: value if isinstance(value, str) else str(value).lower()
              for key, value in given.items()}  # fmt: skip
    return runner.run("scan", {"before": before}, **inputs, **more)


class Clock:
    """Says what was done, and how long it took."""

    def __init__(self) -> None:
        """Begin."""
        self.begun = self.last = time.perf_counter()

    def tell(self, what: str, status: int) -> None:
        """Say a command, the seconds since the last one, and its exit status."""
        now = time.perf_counter()
        print(f"$ {what}\n  {now - self.last:.0f} s, exit {status}", flush=True)
        self.last = now

    @property
    def minutes(self) -> float:
        """Minutes since the beginning."""
        return (time.perf_counter() - self.begun) / 60


def installed(runner: Runner, clock: Clock) -> None:
    """Install this tree where the action's scan looks for it.

    Raises:
        SystemExit: If a command fails.
    """
    pip = [str(runner.venv / "bin" / "python"), "-m", "pip", "install", "-q"]
    torch = re.findall(r"^torch==.*", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    quietly: Sequence[list[str]] = (
        [sys.executable, "-m", "venv", str(runner.venv)],
        [*pip, *torch],
        [*pip, "-c", str(ROOT / "constraints.txt"), str(ROOT)],
    )
    for words in quietly:
        alone = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
        done = subprocess.run(words, env=alone, check=False)  # noqa: S603 - no shell
        shown = shlex.join(words).replace(str(runner.temp), "$RUNNER_TEMP")
        clock.tell(shown.replace(str(ROOT), "$ACTION").replace(sys.executable, "python"),
                   done.returncode)  # fmt: skip
        if done.returncode:
            sys.exit(f"could not install: {shown}")


def told(ran: Stepped) -> str:
    """Return the annotations of a step and the row of the model in its summary."""
    lines = re.findall(r"^::(?:error|warning|notice) .*", ran.said, re.MULTILINE)
    return "\n".join(f"  {line}" for line in [*lines, *re.findall(r"^\| `.*", ran.summary, re.M)])


def main(arguments: list[str]) -> int:
    """Go the whole way; return 0 if the twin passed and the gift did not."""
    folder = Path(arguments[0]) if arguments else Path(tempfile.mkdtemp())
    os.environ.pop("PYTHONPATH", None)  # what was installed is what runs
    at = git(ROOT, "rev-parse", "--short", "HEAD")
    print(f"commit {at}, {platform.machine()}, {os.cpu_count()} threads, "
          f"Python {platform.python_version()}\n")  # fmt: skip
    clock, runner = Clock(), Runner(folder, borrow=False)
    sample(runner.workspace)
    clock.tell(f"git init && git add {WORKFLOW} {CONFIG} {CLEAN} && git commit", 0)
    installed(runner, clock)
    statuses = []
    for name in ("twin", "gift"):
        ran = pushed(runner, GIFT / f"{name}.safetensors")
        clock.tell(f"cp {name}.safetensors {MODEL} && git commit && python "
                   "$ACTION/scripts/action.py", ran.status)  # fmt: skip
        print(told(ran) or ran.said, flush=True)
        statuses.append(ran.status)
    green, red = statuses
    print(f"\ntwin {'green' if not green else 'red'}, gift {'red' if red else 'green'}, "
          f"{clock.minutes:.1f} minutes")  # fmt: skip
    if not arguments:
        shutil.rmtree(folder)
    return int(statuses != [0, 1])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
