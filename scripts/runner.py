"""What GitHub's runner does with a step of `action.yml`: inputs come by environment."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[1]
ACTION: dict[str, Any] = yaml.safe_load((ROOT / "action.yml").read_text(encoding="utf-8"))
STEPS: list[dict[str, Any]] = ACTION["runs"]["steps"]
EXPRESSION = re.compile(r"\$\{\{ *([\w.-]+) *\}\}")


@dataclass(frozen=True)
class Stepped:
    """What a step left: its status, its output, and the runner's files."""

    status: int
    said: str
    outputs: dict[str, str]
    summary: str


def step(name: str) -> dict[str, Any]:
    """Return the step of an id, or of the input that switches it on."""
    (found,) = [s for s in STEPS if s.get("id") == name or f"{name} == 'true'" in str(s.get("if"))]
    return found


def git(folder: Path, *arguments: str) -> str:
    """Run Git in a folder and return what it says."""
    who = ("-c", "user.name=x", "-c", "user.email=x@y", "-c", "commit.gpgsign=false")
    asked = ["git", *who, *arguments]
    done = subprocess.run(asked, cwd=folder, check=True, capture_output=True)  # noqa: S603
    return done.stdout.decode().strip()


class Runner:
    """A workspace, and a folder where a step finds Python with the package.

    Attributes:
        workspace: Where the repository is checked out.
        temp: The runner's own folder.
        venv: Where the action's scan takes `python` and `gifthorse` from.
    """

    def __init__(self, folder: Path, *, borrow: bool = True) -> None:
        """Make the folders; with `borrow` the venv leads to this Python and its package."""
        self.workspace, self.temp = folder / "work", folder / "temp"
        self.venv = self.temp / "gifthorse"
        self.workspace.mkdir(parents=True)
        self.temp.mkdir()
        if borrow:
            command = self.venv / "bin" / "gifthorse"
            command.parent.mkdir(parents=True)
            line = "from gifthorse.cli.app import main; main()"
            command.write_text(f"#!/bin/sh\nexec {sys.executable} -c '{line}' \"$@\"\n")
            (command.parent / "python").symlink_to(sys.executable)
            command.chmod(0o755)

    def values(self, inputs: Mapping[str, str]) -> dict[str, str]:
        """Return what expressions of the action stand for."""
        known = {f"inputs.{key}": str(about.get("default", ""))
                 for key, about in ACTION["inputs"].items()}  # fmt: skip
        known |= {f"inputs.{key.replace('_', '-')}": value for key, value in inputs.items()}
        known |= {"github.action_path": str(ROOT), "runner.temp": str(self.temp)}
        known |= {"github.event.pull_request.number": "7"}
        return known | {
            "steps.scan.outputs.md": str(self.workspace / "gifthorse-out" / "summary.md")
        }

    def run(self, name: str, event: Mapping[str, Any] | None = None, **inputs: str) -> Stepped:
        """Run a step in the workspace, after an event and with inputs."""
        values = self.values(inputs)
        files = {key: self.temp / key.lower() for key in ("GITHUB_OUTPUT", "GITHUB_STEP_SUMMARY")}
        for path in files.values():
            path.write_text("")
        told = self.temp / "event.json"
        told.write_text(json.dumps(event or {}))
        asked = step(name)
        environment = {key: EXPRESSION.sub(lambda m: values.get(m[1], ""), str(value))
                       for key, value in asked["env"].items()}  # fmt: skip
        script = self.temp / "step.sh"
        script.write_text(asked["run"])
        done = subprocess.run(  # noqa: S603 - the action's own step
            ["bash", "--noprofile", "--norc", "-eo", "pipefail", str(script)],  # noqa: S607
            cwd=self.workspace,
            env={**os.environ, **environment, **{k: str(p) for k, p in files.items()},
                 "GITHUB_EVENT_PATH": str(told), "GITHUB_REPOSITORY": "org/name",
                 "PATH": f"{self.venv}/bin:{os.environ['PATH']}"},
            capture_output=True,
            text=True,
            check=False,
        )  # fmt: skip
        rows = files["GITHUB_OUTPUT"].read_text().splitlines()
        outputs = dict(row.split("=", 1) for row in rows)
        summary = files["GITHUB_STEP_SUMMARY"].read_text()
        return Stepped(done.returncode, done.stdout + done.stderr, outputs, summary)
