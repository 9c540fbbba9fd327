"""What `action.yml` runs: scan the models that a push or pull request brings, and tell GitHub.

Everything comes by environment, as a runner gives it; nothing but Python's own library is needed
beside the command `gifthorse`.
"""

from __future__ import annotations

import json
import os
import secrets
import shlex
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".ckpt", ".pkl", ".onnx", ".keras", ".h5")
POINTER = b"version https://git-lfs"  # what lies in place of a file that was not fetched
OPTIONS = ("images", "arch", "normalize", "preset", "fail-on", "time-limit")
USAGE = 4  # exit status of a wrong call
FILES = {"sarif": "gifthorse.sarif", "md": "summary.md", "junit": "junit.xml",
         "csv": "results.csv", "github": "annotations.txt"}  # fmt: skip


class WrongInput(Exception):
    """An input that nothing can be done with, in words."""


# 1. Which models ------------------------------------------------------------------------------


def models(given: Mapping[str, str]) -> list[str]:
    """Return the models to scan: those named, or else those that were changed.

    Raises:
        WrongInput: If a pattern matches nothing, or a file was not fetched.
    """
    named = given.get("GIFTHORSE_MODELS", "").split("\n")
    found = _matching([p.strip() for p in named if p.strip()]) or changed(given)
    for path in found:
        if _starts(Path(path)) == POINTER:
            raise WrongInput(f"{path} is a pointer of Git LFS: check out with `lfs: true`")
    return list(dict.fromkeys(_whole(path) for path in found))


def _starts(path: Path) -> bytes:
    if not path.is_file():
        return b""
    with path.open("rb") as file:
        return file.read(len(POINTER))


def _matching(patterns: Iterable[str]) -> list[str]:
    out: list[str] = []
    for pattern in patterns:
        some = sorted(str(p) for p in Path().glob(pattern)) if "*" in pattern else [pattern]
        if not some:
            raise WrongInput(f"no file matches {pattern!r} of the input `models`")
        out += some
    return out


def changed(given: Mapping[str, str]) -> list[str]:
    """Return the model files that an event changed; all of the repository without an event."""
    event: dict[str, object] = {}
    if path := given.get("GITHUB_EVENT_PATH"):
        event = json.loads(Path(path).read_text(encoding="utf-8"))
    base = before(event)
    asked = ["diff", "--name-only", "--diff-filter=d", "-z", f"{base}...HEAD"]
    listed = _git(*asked) if base else None
    if listed is None:  # no event, or a checkout without that commit: better too many than too few
        listed = _git("ls-files", "-z")
    if listed is None:
        raise WrongInput("no Git repository here: check it out first, or name `models`")
    return sorted(p for p in listed.split("\0") if p.lower().endswith(SUFFIXES))


def before(event: Mapping[str, object]) -> str:
    """Return the commit that an event's changes are counted from; empty if there is none."""
    pull = event.get("pull_request")
    base = pull.get("base") if isinstance(pull, dict) else None
    known = base.get("sha") if isinstance(base, dict) else event.get("before")
    is_commit = isinstance(known, str) and known.strip("0") and known.isalnum()
    return str(known) if is_commit else ""


def _git(*arguments: str) -> str | None:
    """Return what Git says, None if it fails."""
    command = ["git", "-c", "core.quotePath=false", *arguments]
    done = subprocess.run(command, capture_output=True, check=False)  # noqa: S603 - no shell
    return done.stdout.decode("utf-8", "surrogateescape") if not done.returncode else None


def _whole(path: str) -> str:
    """Return the folder of a hub that a file is part of, or else the file."""
    folder = Path(path).parent
    return str(folder) if (folder / "config.json").is_file() and str(folder) != "." else path


# 2. The scan ----------------------------------------------------------------------------------


def command(given: Mapping[str, str], found: Sequence[str], folder: Path) -> list[str]:
    """Return the command that scans."""
    keys = {f"GIFTHORSE_{name.replace('-', '_').upper()}": name for name in OPTIONS}
    flags = [f"--{name}={given[key]}" for key, name in keys.items() if given.get(key)]
    outs = [part for form, name in FILES.items() for part in ("-o", f"{form}={folder / name}")]
    more = shlex.split(given.get("GIFTHORSE_ARGUMENTS", ""))
    return ["gifthorse", "scan", *flags, *outs, *more, "--", *found]


def run(given: Mapping[str, str]) -> int:
    """Scan, tell GitHub, and return the exit status.

    Raises:
        WrongInput: If an input is wrong.
    """
    if not given.get("GIFTHORSE_IMAGES"):
        raise WrongInput("the input `images` is needed: a folder of clean images, or an .npz")
    found = models(given)
    folder = Path(given.get("GIFTHORSE_OUT") or "gifthorse-out")
    folder.mkdir(parents=True, exist_ok=True)
    if not found:
        print("::notice title=gifthorse::no model file was changed, so none was scanned")
        _append(given, "GITHUB_OUTPUT", "status=0\nmodels=0\n")
        return 0
    token = secrets.token_hex(16)
    print(f"::stop-commands::{token}", flush=True)  # what a file's names say is no command
    status = subprocess.run(command(given, found, folder), check=False).returncode  # noqa: S603
    print(f"::{token}::", flush=True)
    print(_read(folder / FILES["github"]), end="", flush=True)
    _append(given, "GITHUB_STEP_SUMMARY", _read(folder / FILES["md"]))
    told = {form: folder / name for form, name in FILES.items() if (folder / name).is_file()}
    lines = [f"status={status}", f"models={len(found)}", *(f"{f}={p}" for f, p in told.items())]
    _append(given, "GITHUB_OUTPUT", "\n".join(lines) + "\n")
    return status


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.is_file() else ""


def _append(given: Mapping[str, str], name: str, text: str) -> None:
    """Add to one of the runner's files, if there is a runner."""
    if path := given.get(name):
        with Path(path).open("a", encoding="utf-8") as file:
            file.write(text)


if __name__ == "__main__":
    try:
        sys.exit(run(os.environ))
    except WrongInput as error:
        print(f"::error title=gifthorse::{error}".replace("\n", " "))
        sys.exit(USAGE)
