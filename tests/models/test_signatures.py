"""Signatures beside models: named with what they leave out, never believed, whatever they hold."""

from __future__ import annotations

import base64
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from gifthorse.core.errors import BadOption, UnreadableModel
from gifthorse.models import inspect, load
from gifthorse.models.load import save
from gifthorse.models.signatures import LARGEST, PREDICATES, read_signature, signed
from gifthorse.models.zoo import NETS


def bundle(
    *names: str, material: Any = None, method: str = "files", kind: str = PREDICATES[0]
) -> str:
    resources = [{"name": n, "algorithm": "sha256", "digest": "00"} for n in names]
    predicate = {"serialization": {"method": method}, "resources": resources}
    said = {"predicateType": kind, "predicate": predicate, "subject": [{"name": "net"}]}
    payload = json.dumps(said).encode()
    return json.dumps({
        "verificationMaterial": {"publicKey": {"hint": "ab"}} if material is None else material,
        "dsseEnvelope": {"payload": base64.b64encode(payload).decode(), "signatures": []},
    })  # fmt: skip


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "net.safetensors"
    torch.manual_seed(0)
    save(path, NETS["tiny"](3).state_dict(), {})
    return path


def test_a_signature_is_told_as_not_verified_with_the_command_that_does(model: Path) -> None:
    assert signed(model) == ()
    (model.parent / "model.sig").write_text(bundle("net.safetensors"))
    (model.parent / "evil.py").write_text("")
    said, verify, left = signed(model)
    assert "signed with a key, not verified: model.sig claims to cover 1 file" in said
    assert "give --signer-key FILE, or model_signing verify key" in verify
    assert "evil.py" in left
    assert "net.safetensors" not in left
    assert set(signed(model)) <= set(inspect(model).notes)
    assert set(signed(model)) <= set(load(model).origin.notes)


def test_a_signature_of_its_name_comes_first_and_that_of_another_file_is_none(model: Path) -> None:
    other = model.with_name("other.sig")
    other.write_text(bundle("."))
    model.with_name("other.pt").write_text("")
    assert signed(model) == ()
    other.rename(model.with_name("free.sig"))
    model.with_name("other.pt").unlink()
    assert len(signed(model)) == 2  # the only one there, of nothing else
    model.with_name("net.safetensors.sig").write_text(bundle(".", material={"certificate": {}}))
    said, _ = signed(model)
    assert "signed with a Sigstore identity, not verified" in said
    assert "cover this file" in said


def test_parts_of_a_file_are_that_file(tmp_path: Path) -> None:
    path = tmp_path / "model.sig"
    path.write_text(bundle("a:0:9", "a:9:12", "b:0:3", method="shards"))
    assert read_signature(path).names == {"a", "b"}


def test_statements_before_1_0_name_files_as_subjects(tmp_path: Path) -> None:
    path = tmp_path / "model.sig"
    path.write_text(bundle(kind=PREDICATES[1], material={"x509CertificateChain": {}}))
    found = read_signature(path)
    assert found.names == {"net"}
    assert found.kind == "x509CertificateChain"


BROKEN = {
    "empty": b"",
    "no JSON": b"\xff\x00",
    "deep": b"[" * 100_000,
    "a list": b"[]",
    "a number": b"7",
    "no bundle": b'{"a": 1}',
    "no base64": b'{"verificationMaterial": {}, "dsseEnvelope": {"payload": "!"}}',
    "a payload of null": b'{"verificationMaterial": {}, "dsseEnvelope": {"payload": "bnVsbA=="}}',
    "another statement": bundle("a", kind="https://slsa.dev/provenance/v1").encode(),
    "no key": bundle("a", material={}).encode(),
    "material of null": bundle("a", material=7).encode(),
    "no files": bundle().encode(),
    "huge": b" " * (LARGEST + 1),
}


@pytest.mark.parametrize("content", BROKEN.values(), ids=BROKEN)
def test_what_is_no_signature_is_said_so(model: Path, content: bytes) -> None:
    path = model.with_name("model.sig")
    path.write_bytes(content)
    with pytest.raises(UnreadableModel):
        read_signature(path)
    (said,) = signed(model)
    assert "is no signature that can be read" in said


def test_without_the_library_a_key_is_refused_with_what_to_install(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "model_signing", None)  # as if it were not installed
    for look in (load, inspect):
        with pytest.raises(BadOption, match=r"pip install 'gifthorse\[signing\]'"):
            look(model, signer=model)
