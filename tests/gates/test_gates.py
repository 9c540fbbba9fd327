"""Hooks, container and compose file: what they ask for is there, and little enough."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer.main
import yaml

from gifthorse.cli.commands import app, run
from gifthorse.core import errors
from gifthorse.core.errors import GifthorseError

ROOT = Path(__file__).parents[2]
GIFT = ROOT / "examples" / "gift"
HOOKS: list[dict[str, Any]] = yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text())
hooks = pytest.mark.parametrize("hook", HOOKS, ids=lambda h: str(h["id"]))


@hooks
def test_a_hook_names_a_command_and_model_files(hook: dict[str, Any]) -> None:
    program, command = shlex.split(hook["entry"])
    assert program == "gifthorse"
    assert command in typer.main.get_command(app).commands  # type: ignore[attr-defined]
    assert hook["language"] == "python"
    for name in ("nets/a.safetensors", "b.pt"):
        assert re.search(hook["files"], name)
    assert not re.search(hook["files"], "notes.pt.txt")


@pytest.mark.slow
def test_hooks_pass_and_fail_as_files_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    entries = {h["id"]: shlex.split(h["entry"])[1:] for h in HOOKS}
    good = str(GIFT / "twin.safetensors")
    bad = tmp_path / "bad.pt"
    bad.write_bytes(b"cposix\nsystem\n(S'true'\ntR.")
    assert run([*entries["gifthorse-inspect"], good]) == 0
    assert run([*entries["gifthorse-inspect"], good, str(bad)]) == 1
    few = ["--images", str(GIFT / "clean.npz"), "--limit", "1"]
    assert run([*entries["gifthorse-scan"], *few, good]) == 3
    capsys.readouterr()


def test_the_image_runs_the_command_as_nobody() -> None:
    text = (ROOT / "Dockerfile").read_text()
    last = text.rpartition("\nFROM ")[2]
    assert re.search(r"^USER [1-9]\d+:[1-9]\d+$", last, re.MULTILINE)
    assert last.index("USER") > last.rindex("RUN")
    assert 'ENTRYPOINT ["gifthorse"]' in last
    assert "download.pytorch.org/whl/cpu" in text
    copied = {n for line in re.findall(r"^COPY ([^-].*) \S+$", text, re.MULTILINE)
              for n in line.split()}  # fmt: skip
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    assert all((ROOT / name).exists() and f"!{name}" in ignored for name in copied)


def test_the_container_has_no_network_and_writes_to_one_folder() -> None:
    service = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]["scan"]
    assert service["network_mode"] == "none"
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert "no-new-privileges:true" in service["security_opt"]
    assert service["user"].split(":")[0] != "0"
    assert [v.rpartition(":")[0] for v in service["volumes"] if not v.endswith(":ro")] == [
        "${OUT:-./out}"
    ]


def test_exit_statuses_are_documented_in_one_place() -> None:
    page = (ROOT / "docs" / "gates.md").read_text().partition("## Exit statuses")[2]
    told = {int(n) for n in re.findall(r"^\| (\d+) \|", page.partition("\n## ")[0], re.MULTILINE)}
    kinds = [k for k in vars(errors).values() if isinstance(k, type)]
    known = {k.exit_code for k in kinds if issubclass(k, GifthorseError)}
    assert known | {0, 1, 130, 143} == told
