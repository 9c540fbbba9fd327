"""Models by name, from a hub on loopback that the test starts."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from tests.models.hub_server import COMMIT, SECRET, Hub, Repository

from gifthorse.cli.commands import run
from gifthorse.core.errors import BadOption, Unfetched, UnreadableModel, UsageError
from gifthorse.models.hub import fetching
from gifthorse.models.hub.fetching import fetch, is_hub_name, wanted

pytest.importorskip("huggingface_hub")
import huggingface_hub
from huggingface_hub import constants, file_download

ROOT = Path(__file__).parents[2]
GIFT = ROOT / "examples" / "gift"
TOKEN = "hf_" + "x" * 30
WEIGHTS = bytes(range(256)) * 400


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub with one repository `org/net`, an empty cache, and a client that waits little."""
    server = Hub()
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    files = {"config.json": b"{}", "preprocessor_config.json": b"{ }", "model.safetensors": WEIGHTS,
             "pytorch_model.bin": b"x", "modeling.py": b"import os", "README.md": b"#",
             "../evil.json": b"{}"}  # fmt: skip
    server.repositories["org/net"] = Repository(files, lfs={"model.safetensors"})
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(constants, "ENDPOINT", server.address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE",
                        server.address + "/{repo_id}/resolve/{revision}/{filename}")  # fmt: skip
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.3)
    monkeypatch.setattr(constants, "HF_HUB_ETAG_TIMEOUT", 2)
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1024)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    quick = SimpleNamespace(**{**vars(time), "sleep": lambda seconds: None})
    monkeypatch.setattr(file_download, "time", quick)
    yield server
    server.let_go.set()
    server.shutdown()
    server.server_close()


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


# 1. What is fetched ---------------------------------------------------------------------------


def test_only_what_is_needed_is_fetched_and_its_hashes_are_told(hub: Hub) -> None:
    told: list[str] = []
    found = fetch("hf:org/net", told.append)
    kept = ["config.json", "model.safetensors", "preprocessor_config.json"]
    assert sorted(p.name for p in found.path.iterdir()) == kept
    assert (found.path / "model.safetensors").read_bytes() == WEIGHTS
    assert found.name == f"hf:org/net@{COMMIT}"
    assert found.notes[0] == f"fetched from {hub.address}, org/net at commit {COMMIT}"
    assert f"model.safetensors: sha256 {sha256(WEIGHTS)}, as the hub has it" in found.notes
    assert "not fetched, but others may run it: modeling.py, pytorch_model.bin" in found.notes
    assert told[-1] == "fetching model.safetensors, 0.1 MB"
    assert "modeling.py" not in hub.fetched()
    assert {a.path.split("/")[1] for a in hub.asked} == {"api", "org", "stored"}
    assert all("agent-harnesses" not in a.path for a in hub.asked)  # no telemetry


def test_what_is_there_is_not_fetched_again(hub: Hub) -> None:
    first = fetch("hf:org/net@main")
    before = hub.fetched()
    assert fetch("hf:org/net") == first
    assert hub.fetched() == before
    assert fetch(f"hf:org/net@{COMMIT}") == first


def test_shards_are_those_of_the_index(hub: Hub) -> None:
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    files = {"config.json": b"{}", "model.safetensors.index.json": json.dumps(index).encode(),
             "model-1.safetensors": b"one", "model-2.safetensors": b"two",
             "model-3.safetensors": b"none"}  # fmt: skip
    hub.repositories["org/large"] = Repository(files)
    found = fetch("hf:org/large")
    names = {p.name for p in found.path.iterdir()}
    assert names == {*files} - {"model-3.safetensors"}
    del files["model-2.safetensors"]
    with pytest.raises(UnreadableModel, match=r"names 'model-2\.safetensors', which is missing"):
        fetch("hf:org/large")
    index["weight_map"]["b"] = "../../.bashrc"
    hub.repositories["org/evil"] = Repository(
        {"model.safetensors.index.json": json.dumps(index).encode()}
    )
    with pytest.raises(UnreadableModel) as caught:
        fetch("hf:org/evil")
    assert caught.value.rule == "FS006"


def test_weights_are_chosen_by_name() -> None:
    assert wanted(["net.pt", "README.md"]) == ([], "net.pt")
    with pytest.raises(UsageError, match=r"several model files \(a\.pt, b\.ckpt\)"):
        wanted(["b.ckpt", "a.pt"])
    with pytest.raises(UnreadableModel, match="no weights"):
        wanted(["config.json", "flax_model.msgpack"])


@pytest.mark.parametrize("name", ["hf:", "hf:a/b/c", "hf:a b", "hf:../x", "hf:org/net@a b"])
def test_a_name_that_is_none_is_refused(hub: Hub, name: str) -> None:
    assert is_hub_name(name)
    with pytest.raises(UsageError, match="is no name on a hub"):
        fetch(name)
    assert hub.asked == []


# 2. What goes wrong ---------------------------------------------------------------------------


def test_a_redirect_is_followed(hub: Hub) -> None:
    fetch("hf:org/net")
    tokens = {a.path.split("/")[1]: a.headers.get("authorization") for a in hub.asked}
    assert tokens["api"] == tokens["org"] == f"Bearer {TOKEN}"
    assert "stored" in tokens


def test_a_stalled_connection_goes_on_where_it_stopped(hub: Hub) -> None:
    hub.repositories["org/net"].faults["model.safetensors"] = "stall"
    found = fetch("hf:org/net")
    assert (found.path / "model.safetensors").read_bytes() == WEIGHTS
    ranges = [a.headers["range"] for a in hub.asked if "range" in a.headers]
    assert ranges == [f"bytes={len(WEIGHTS) // 2}-"]


def test_a_connection_that_is_cut_ends_in_words_and_the_next_call_goes_on(hub: Hub) -> None:
    hub.repositories["org/net"].faults["model.safetensors"] = "cut"
    with pytest.raises(Unfetched, match="run it again to go on") as caught:
        fetch("hf:org/net")
    assert SECRET not in str(caught.value)
    del hub.repositories["org/net"].faults["model.safetensors"]
    hub.asked.clear()
    assert (fetch("hf:org/net").path / "model.safetensors").read_bytes() == WEIGHTS
    assert "config.json" not in hub.fetched()


@pytest.mark.slow
def test_a_connection_that_stays_stuck_ends(hub: Hub) -> None:
    hub.repositories["org/net"].faults["model.safetensors"] = "stuck"
    with pytest.raises(Unfetched, match="could not be fetched"):
        fetch("hf:org/net")


@pytest.mark.parametrize("file", ["model.safetensors", "config.json"])
def test_a_file_with_another_hash_is_refused(hub: Hub, file: str) -> None:
    hub.repositories["org/net"].faults[file] = "wrong"
    with pytest.raises(UnreadableModel, match="is not what the hub has") as caught:
        fetch("hf:org/net")
    assert caught.value.rule == "FS003"


def test_a_cache_that_was_changed_is_refused(hub: Hub) -> None:
    found = fetch("hf:org/net")
    blob = (found.path / "model.safetensors").resolve()
    blob.write_bytes(WEIGHTS[:-1] + b"!")
    for offline in (False, True):
        hub.broken = offline
        with pytest.raises(UnreadableModel, match="is not what the hub has"):
            fetch("hf:org/net")
        if not offline:
            os.environ["HF_HUB_OFFLINE"] = "1"
    del os.environ["HF_HUB_OFFLINE"]


def test_each_refusal_says_what_to_do(hub: Hub) -> None:
    repository = hub.repositories["org/net"]
    with pytest.raises(UsageError, match=r"there is no hf:org/none on .*check the name"):
        fetch("hf:org/none")
    with pytest.raises(UsageError, match="no such revision"):
        fetch("hf:org/net@v9")
    repository.faults["model.safetensors"] = "missing"
    with pytest.raises(Unfetched, match="status 404"):
        fetch("hf:org/net")
    repository.gated = True
    with pytest.raises(Unfetched, match="is gated: ask for access") as caught:
        fetch("hf:org/net")
    assert TOKEN not in str(caught.value)
    repository.sha = "../" * 13 + "x"
    with pytest.raises(UnreadableModel, match="names no commit"):
        fetch("hf:org/net")
    hub.broken = True
    with pytest.raises(Unfetched):
        fetch("hf:org/net")


def test_without_a_connection_the_cache_answers(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as offline:
        offline.setenv("HF_HUB_OFFLINE", "1")
        with pytest.raises(Unfetched, match="not in the cache, and the hub was not asked"):
            fetch("hf:org/net")
    first = fetch("hf:org/net")
    asked = len(hub.asked)
    with monkeypatch.context() as offline:
        offline.setenv("HF_HUB_OFFLINE", "1")
        again = fetch("hf:org/net")
    assert len(hub.asked) == asked
    assert (again.path, again.name) == (first.path, first.name)
    assert again.notes[0].startswith("from the cache, the hub was not asked")
    assert f"model.safetensors: sha256 {sha256(WEIGHTS)}" in again.notes
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:1")  # nobody listens
    assert fetch("hf:org/net").notes == again.notes
    with pytest.raises(Unfetched, match="could not be fetched"):
        fetch("hf:org/other")
    assert huggingface_hub.constants.HF_HUB_OFFLINE  # nothing else of a scan connects


# 3. In commands -------------------------------------------------------------------------------


def test_a_scan_by_name_reports_the_commit_and_the_hash(hub: Hub, tmp_path: Path) -> None:
    content = (GIFT / "gift.safetensors").read_bytes()
    hub.repositories["org/gift"] = Repository({"gift.safetensors": content, "a.py": b"1"},
                                              lfs={"gift.safetensors"})  # fmt: skip
    asked = ["scan", "hf:org/gift", "--images", str(GIFT / "clean.npz"), "--limit", "1"]
    assert run([*asked, "-o", f"json={tmp_path}/{{name}}.json"]) == 3
    result = json.loads((tmp_path / "gift.json").read_text())
    assert result["target"]["path"] == f"hf:org/gift@{COMMIT}"
    assert result["target"]["sha256"] == sha256(content)
    assert result["target"]["notes"][1].startswith(f"gift.safetensors: sha256 {sha256(content)}")
    hub.repositories["org/gift"].files["gift.safetensors"] = content + b"!"
    hub.repositories["org/gift"].faults["gift.safetensors"] = "wrong"
    assert run([*asked, "-o", f"json={tmp_path}/bad.json"]) == 2
    result = json.loads((tmp_path / "bad.json").read_text())
    assert (result["verdict"]["label"], result["checks"][0]["rule"]) == ("NOT SCANNED", "FS003")


@pytest.mark.slow
def test_inspect_by_the_variable_of_the_library(hub: Hub, tmp_path: Path) -> None:
    """In a process of its own, as a user has it: HF_ENDPOINT, HF_HOME and a token."""
    content = (GIFT / "twin.safetensors").read_bytes()
    hub.repositories["org/twin"] = Repository({"twin.safetensors": content})
    own = {"HF_ENDPOINT": hub.address, "HF_HOME": str(tmp_path / "home"), "HF_TOKEN": TOKEN}
    code = "from gifthorse.cli.app import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, "inspect", "hf:org/twin", "hf:org/none"],
        capture_output=True, text=True, check=False, env={**os.environ, **own}, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 4, done.stderr
    said = " ".join(done.stdout.split())
    assert f"hf:org/twin@{COMMIT}" in said
    assert sha256(content) in said
    assert "network tiny, guessed" in said
    assert "there is no hf:org/none" in " ".join(done.stderr.split())
    assert TOKEN not in done.stdout + done.stderr


@pytest.mark.slow
def test_a_folder_of_a_hub_is_scanned_by_its_name(hub: Hub, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    from tests.models.hub import tiny

    tiny("ViT", tmp_path / "vit", classes=43)
    files = {p.name: p.read_bytes() for p in (tmp_path / "vit").iterdir()}
    hub.repositories["org/vit"] = Repository(files, lfs={"model.safetensors"})
    out = tmp_path / "vit.json"
    asked = ["scan", "hf:org/vit@main", "hf:org/vit", "--images", str(GIFT / "clean.npz")]
    assert run([*asked, "--limit", "1", "-o", f"csv={out}"]) == 3
    rows = out.read_text().splitlines()
    assert len(rows) == 3
    assert all(f"hf:org/vit@{COMMIT}" in row and "INCONCLUSIVE" in row for row in rows[1:])


def test_settings_that_the_library_refuses_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(name: str) -> None:
        raise ValueError("Invalid IPv6 URL")

    monkeypatch.setattr(fetching, "import_module", refuses)
    with pytest.raises(BadOption, match=r"refuses its settings .*: Invalid IPv6 URL"):
        fetch("hf:org/net")
