"""Signatures by the signers' own library: one that holds is told, every tampering is refused."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.models.test_signatures import BROKEN, bundle

from gifthorse.core.errors import BadOption, UnreadableModel, UsageError
from gifthorse.models import inspect, load, verification
from gifthorse.models.hub.fetching import check_fetched
from gifthorse.models.load import save
from gifthorse.models.reading.files import digest_of
from gifthorse.models.verification import RULE, SETTINGS, Seal, read_key, sealed
from gifthorse.models.zoo import NETS

pytest.importorskip("model_signing", reason="needs gifthorse[signing]")

from tests.models.signers import Pair, ec, hashing, public_pem


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> tuple[Pair, Pair]:
    folder = tmp_path_factory.mktemp("keys")
    return Pair(folder, "author"), Pair(folder, "other")


@pytest.fixture
def folder(tmp_path: Path, keys: tuple[Pair, Pair]) -> Path:
    """A signed folder of one file of weights, a card and a file in a folder of its own."""
    place = tmp_path / "model"
    (place / "more").mkdir(parents=True)
    torch.manual_seed(0)
    save(place / "net.safetensors", NETS["tiny"](3).state_dict(), {})
    (place / "README.md").write_text("a card")
    (place / "more" / "notes.txt").write_text("notes")
    keys[0].sign(place, place / "model.sig")
    return place


def refused(model: Path, key: Path) -> str:
    """Return why a model is not opened, and make sure that looking at it finds the same."""
    with pytest.raises(UnreadableModel) as caught:
        load(model, signer=key)
    assert caught.value.rule == RULE
    seen = inspect(model, signer=key)
    assert seen.status == 1
    (found,) = [f for f in seen.findings if f.rule == RULE]
    assert (found.severity, found.message) == ("HIGH", str(caught.value))
    assert not any("signed" in note for note in seen.notes)
    return str(caught.value)


# 1. What holds --------------------------------------------------------------------------------


def test_a_signature_that_holds_is_told(folder: Path, keys: tuple[Pair, Pair]) -> None:
    key = hashlib.sha256(keys[0].public.read_bytes()).hexdigest()
    words = (
        f"signed by the holder of the key SHA-256 {key}; all 3 files that model.sig covers match"
    )
    for model in (folder, folder / "net.safetensors"):
        got, seen = load(model, signer=keys[0].public), inspect(model, signer=keys[0].public)
        assert got.origin.signer is not None
        assert got.origin.signer.words == words
        assert words in got.origin.notes
        assert words in seen.notes
        assert seen.status == 0
        assert not any("not verified" in note for note in (*got.origin.notes, *seen.notes))
    assert load(folder).origin.signer is None
    assert any("not verified" in note for note in load(folder).origin.notes)


def test_a_folder_may_be_named_by_a_link(folder: Path, keys: tuple[Pair, Pair]) -> None:
    link = folder.with_name("link")
    link.symlink_to(folder)
    assert load(link, signer=keys[0].public).origin.signer is not None


HASHED: dict[str, Callable[[], Any]] = {
    "blake2": lambda: hashing.Config().use_file_serialization(hashing_algorithm="blake2"),
    "blake3": lambda: hashing.Config().use_file_serialization(hashing_algorithm="blake3"),
    "parts": lambda: hashing.Config().use_shard_serialization(shard_size=1000),
    "parts by blake2": lambda: hashing.Config().use_shard_serialization(
        hashing_algorithm="blake2", shard_size=1000
    ),
}


@pytest.mark.parametrize("how", HASHED.values(), ids=HASHED)
def test_every_way_to_hash_is_checked(
    folder: Path, keys: tuple[Pair, Pair], how: Callable[[], Any]
) -> None:
    (folder / "model.sig").unlink()
    keys[0].sign(folder, folder / "model.sig", how())
    assert load(folder, signer=keys[0].public).origin.signer is not None
    _flip(folder / "net.safetensors", 250_000)
    assert "net.safetensors" in refused(folder, keys[0].public)


@pytest.mark.parametrize("name", ["net.safetensors.sig", "net.sig", "model.sig"])
def test_a_file_may_have_a_signature_of_its_own(
    tmp_path: Path, keys: tuple[Pair, Pair], folder: Path, name: str
) -> None:
    model = tmp_path / "net.safetensors"
    shutil.copy(folder / "net.safetensors", model)
    keys[0].sign(model, tmp_path / name)
    got = load(model, signer=keys[0].public).origin
    assert got.signer is not None
    assert got.signer.words.endswith(f"; the file that {name} covers matches")
    _flip(model, 250_000)
    refused(model, keys[0].public)


@pytest.mark.parametrize("curve", ["SECP384R1", "SECP521R1"])
def test_longer_keys_verify_as_well(folder: Path, tmp_path: Path, curve: str) -> None:
    long = Pair(tmp_path, "long", getattr(ec, curve)())
    (folder / "model.sig").unlink()
    long.sign(folder, folder / "model.sig")
    assert load(folder, signer=long.public).origin.signer is not None


def test_what_the_signer_left_out_is_told_if_it_is_not_read(
    folder: Path, keys: tuple[Pair, Pair]
) -> None:
    (folder / "model.sig").unlink()
    keys[0].sign(folder, folder / "model.sig", ignored=("README.md", "more"))
    (folder / "README.md").write_text("another card")
    got = load(folder, signer=keys[0].public).origin
    assert "left out by its signer: README.md, more/notes.txt" in got.notes
    (folder / "model.sig").unlink()
    keys[0].sign(folder, folder / "model.sig", ignored=("net.safetensors",))
    words = refused(folder, keys[0].public)
    assert words == "model.sig does not cover what is read: net.safetensors"


def test_files_of_git_are_none_of_the_model(folder: Path, keys: tuple[Pair, Pair]) -> None:
    (folder / ".git").mkdir()
    (folder / ".git" / "HEAD").write_text("ref")
    assert load(folder, signer=keys[0].public).origin.signer is not None


# 2. What does not -----------------------------------------------------------------------------


def _flip(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


def _linked(path: Path, target: Path) -> None:
    path.rename(target)
    path.symlink_to(target)


def _hollow(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _rewritten(path: Path, change: Callable[[dict[str, Any], dict[str, Any]], None]) -> None:
    """Change a signature, or what it says, and leave the rest as it was."""
    found = json.loads(path.read_text())
    said = json.loads(base64.b64decode(found["dsseEnvelope"]["payload"]))
    change(found, said)
    found["dsseEnvelope"]["payload"] = base64.b64encode(json.dumps(said).encode()).decode()
    path.write_text(json.dumps(found))


def _renewed(folder: Path) -> Callable[[dict[str, Any], dict[str, Any]], None]:
    """Flip a weight, and put the digest that the file has then into what is signed."""

    def change(found: dict[str, Any], said: dict[str, Any]) -> None:
        _flip(folder / "net.safetensors", 250_000)
        new = hashlib.sha256((folder / "net.safetensors").read_bytes()).hexdigest()
        (own,) = [r for r in said["predicate"]["resources"] if r["name"] == "net.safetensors"]
        own["digest"] = new
        digests = b"".join(bytes.fromhex(r["digest"]) for r in said["predicate"]["resources"])
        said["subject"][0]["digest"]["sha256"] = hashlib.sha256(digests).hexdigest()

    return change


def _two_envelopes(folder: Path) -> None:
    """Show the signed envelope under the name that other readers take, a forged one as usual."""
    path = folder / "model.sig"
    true = json.loads(path.read_text())["dsseEnvelope"]
    _rewritten(path, _renewed(folder))
    path.write_text(json.dumps({**json.loads(path.read_text()), "dsse_envelope": true}))


TAMPERED: dict[str, tuple[Callable[[Path], Any], str]] = {
    "a bit of the weights": (
        lambda f: _flip(f / "net.safetensors", 250_000),
        "changed since it was signed: net.safetensors",
    ),
    "another file": (
        lambda f: (f / "README.md").write_text("A card"), "changed since it was signed: README.md",
    ),
    "a file less": (lambda f: (f / "README.md").unlink(), "missing in the folder: README.md"),
    "a file more": (
        lambda f: (f / "more" / "evil.py").write_text("1"),
        "does not cover what lies in the folder: more/evil.py",
    ),
    "other settings": (
        lambda f: (f / "preprocessor_config.json").write_text("{}"),
        "does not cover what lies in the folder: preprocessor_config.json",
    ),
    "a link to another place": (
        lambda f: _linked(f / "README.md", f.with_name("card.md")), "is a symlink",
    ),
    "a pipe": (lambda f: os.mkfifo(f / "pipe"), "does not cover what lies in the folder: pipe"),
    "no signature": (lambda f: (f / "model.sig").unlink(), "no signature lies beside it"),
    "a folder as signature": (lambda f: _hollow(f / "model.sig"), "no signature lies beside it"),
    "a signature cut off": (
        lambda f: os.truncate(f / "model.sig", (f / "model.sig").stat().st_size // 2),
        "model.sig: ",
    ),
    "digests made anew": (
        lambda f: _rewritten(f / "model.sig", _renewed(f)), "was not made with the key",
    ),
    "two envelopes": (_two_envelopes, "was not made with the key"),
    "no signature in it": (
        lambda f: _rewritten(f / "model.sig", lambda b, s: b["dsseEnvelope"].pop("signatures")),
        "does not hold",
    ),
    "two signatures in it": (
        lambda f: _rewritten(
            f / "model.sig", lambda b, s: b["dsseEnvelope"]["signatures"].append({"sig": ""})
        ),
        "does not hold",
    ),
    "another media type": (
        lambda f: _rewritten(f / "model.sig", lambda b, s: b.update(mediaType="x")),
        "does not hold",
    ),
    "a hash that is not known": (
        lambda f: _rewritten(
            f / "model.sig",
            lambda b, s: s["predicate"]["serialization"].update(hash_type="md5"),
        ),
        "hashed in a way that cannot be checked",
    ),
    "parts of no size": (
        lambda f: _rewritten(
            f / "model.sig",
            lambda b, s: s["predicate"]["serialization"].update(method="shards", shard_size=0),
        ),
        "hashed in a way that cannot be checked",
    ),
    "names out of the folder": (
        lambda f: _rewritten(
            f / "model.sig",
            lambda b, s: s["predicate"]["resources"].append(
                {"name": "../../etc/passwd", "algorithm": "sha256", "digest": "00"}
            ),
        ),
        "missing in the folder: ../../etc/passwd",
    ),
    "a Sigstore identity": (
        lambda f: (f / "model.sig").write_text(
            bundle("net.safetensors", material={"certificate": {}})
        ),
        "made with a Sigstore identity, not with a key: verify it with model_signing verify",
    ),
    "a certificate": (
        lambda f: (f / "model.sig").write_text(
            bundle("net.safetensors", material={"x509CertificateChain": {}})
        ),
        "made with a certificate, not with a key",
    ),
    "material that is a text": (
        lambda f: (f / "model.sig").write_text(bundle("a", material="publicKey")), "no Sigstore",
    ),
    "a hint that is no text": (
        lambda f: (f / "model.sig").write_text(bundle("a", material={"publicKey": {"hint": [1]}})),
        "made with the key SHA-256 [1], not with",
    ),
    "a key that is a number": (
        lambda f: (f / "model.sig").write_text(bundle("a", material={"publicKey": 7})),
        "made with the key",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("tamper", "words"), TAMPERED.values(), ids=TAMPERED)
def test_what_was_tampered_with_is_refused(
    folder: Path, keys: tuple[Pair, Pair], tamper: Callable[[Path], Any], words: str
) -> None:
    tamper(folder)
    assert words in refused(folder / "net.safetensors", keys[0].public)


@pytest.mark.parametrize("content", BROKEN.values(), ids=BROKEN)
def test_what_is_no_signature_is_refused(
    folder: Path, keys: tuple[Pair, Pair], content: bytes
) -> None:
    (folder / "model.sig").write_bytes(content)
    assert refused(folder, keys[0].public).startswith("model.sig: ")


def test_no_folder_chooses_how_much_is_read(
    folder: Path, keys: tuple[Pair, Pair], monkeypatch: pytest.MonkeyPatch
) -> None:
    with (folder / "README.md").open("r+b") as file:
        file.truncate(verification.LARGEST)  # takes no room on a disk, and minutes to hash
    assert "covers more than 68,719,476,736 bytes" in refused(folder, keys[0].public)
    monkeypatch.setattr(verification, "MOST", 3)
    assert "more than 3 files" in refused(folder, keys[0].public)


def test_another_key_is_refused_whatever_the_signature_says(
    folder: Path, keys: tuple[Pair, Pair]
) -> None:
    other = hashlib.sha256(keys[1].public.read_bytes()).hexdigest()
    assert f"not with the one that is given, {other}" in refused(folder, keys[1].public)

    def named(found: dict[str, Any], said: dict[str, Any]) -> None:
        found["verificationMaterial"]["publicKey"]["hint"] = other

    _rewritten(folder / "model.sig", named)
    assert "was not made with the key" in refused(folder, keys[1].public)


def test_a_signature_of_a_file_covers_no_numbers_beside_it(
    folder: Path, keys: tuple[Pair, Pair]
) -> None:
    model = folder / "net.safetensors"
    keys[0].sign(model, folder / "net.sig")
    seal = sealed(model, read_key(keys[0].public))
    seal.hold([model.name], load(model).origin.sha256)
    with pytest.raises(UnreadableModel, match=r"does not cover what is read: net\.data"):
        seal.hold([model.name, "net.data"], "")


def test_links_are_followed_if_the_signer_followed_them(
    folder: Path, keys: tuple[Pair, Pair]
) -> None:
    (folder / "model.sig").unlink()
    _linked(folder / "net.safetensors", folder.with_name("blob"))
    keys[0].sign(folder, folder / "model.sig", hashing.Config().set_allow_symlinks(True))
    assert load(folder, signer=keys[0].public).origin.signer is not None
    _flip(folder.with_name("blob"), 250_000)
    assert "net.safetensors" in refused(folder, keys[0].public)


# 3. Between the check and the use -------------------------------------------------------------


def _seal(folder: Path, keys: tuple[Pair, Pair]) -> tuple[Seal, str]:
    found = load(folder).origin
    return sealed(folder / "net.safetensors", read_key(keys[0].public)), found.sha256


def test_a_file_that_is_changed_after_the_check_is_refused(
    folder: Path, keys: tuple[Pair, Pair]
) -> None:
    seal, sha256 = _seal(folder, keys)
    seal.hold(["net.safetensors"], sha256)
    os.utime(folder / "net.safetensors")
    with pytest.raises(UnreadableModel, match="changed since"):
        seal.hold(["net.safetensors"], sha256)


def test_other_bytes_are_refused_though_the_file_seems_the_same(
    folder: Path, keys: tuple[Pair, Pair]
) -> None:
    seal, _ = _seal(folder, keys)
    for other in ("0" * 64, digest_of([(Path("net.safetensors"), "0" * 64)])):
        with pytest.raises(UnreadableModel, match="changed since"):
            seal.hold(["net.safetensors"], other)


def test_a_swap_while_the_model_is_read_is_noticed(
    folder: Path, keys: tuple[Pair, Pair], monkeypatch: pytest.MonkeyPatch
) -> None:
    true = verification.sealed

    def swapped(model: Path, key: Any) -> Seal:
        seal = true(model, key)
        torch.manual_seed(1)
        save(folder / "net.safetensors", NETS["tiny"](3).state_dict(), {})
        return seal

    monkeypatch.setattr("gifthorse.models.opening.sealed", swapped)
    with pytest.raises(UnreadableModel, match="changed since") as caught:
        load(folder, signer=keys[0].public)
    assert caught.value.rule == RULE


# 4. Folders of hubs ---------------------------------------------------------------------------


def test_settings_of_a_folder_are_covered_or_it_is_refused(
    tmp_path: Path, keys: tuple[Pair, Pair]
) -> None:
    pytest.importorskip("transformers", reason="needs gifthorse[hub]")
    from tests.models.hub import tiny

    place = tmp_path / "vit"
    tiny("ViT", place)
    keys[0].sign(place, place / "model.sig")
    got = load(place, signer=keys[0].public)
    assert got.origin.signer is not None
    assert got.origin.signer.files == len(os.listdir(place)) - 1
    assert {"config.json", "preprocessor_config.json"} <= {*SETTINGS} & {*os.listdir(place)}
    for left in ("config.json", "preprocessor_config.json", "model.safetensors"):
        (place / "model.sig").unlink()
        keys[0].sign(place, place / "model.sig", ignored=(left,))
        assert f"does not cover what is read: {left}" in refused(place, keys[0].public)
    (place / "model.sig").unlink()
    keys[0].sign(place, place / "model.sig")
    shutil.copy(place / "model.safetensors", place / "model-00002-of-00002.safetensors")
    assert "model-00002-of-00002.safetensors" in refused(place, keys[0].public)


def test_names_on_a_hub_are_refused_with_what_to_do(keys: tuple[Pair, Pair]) -> None:
    check_fetched("hf:org/name", None)
    check_fetched("folder", keys[0].public)
    with pytest.raises(BadOption, match="hf download ORG/NAME --local-dir DIR"):
        check_fetched("hf:org/name", keys[0].public)


# 5. Keys --------------------------------------------------------------------------------------


def _rsa() -> bytes:
    from cryptography.hazmat.primitives.asymmetric import rsa

    return public_pem(rsa.generate_private_key(65537, 2048).public_key())


def test_what_is_no_key_is_said_before_anything_is_opened(
    folder: Path, tmp_path: Path, keys: tuple[Pair, Pair]
) -> None:
    path = tmp_path / "some.pub"
    with pytest.raises(UsageError, match="there is no file"):
        load(folder, signer=path)
    for content in (
        b"",
        b"\xff" * 100,
        keys[0].private.read_bytes(),
        b"-----BEGIN PUBLIC KEY-----",
    ):
        path.write_bytes(content)
        with pytest.raises(BadOption, match="takes a public key in PEM"):
            load(folder, signer=path)
    path.write_bytes(_rsa())
    with pytest.raises(BadOption, match="on the curve P-256, P-384 or P-521"):
        inspect(folder, signer=path)
    path.write_bytes(Pair(tmp_path, "k1", ec.SECP256K1()).public.read_bytes())
    with pytest.raises(BadOption, match="on the curve"):
        load(folder, signer=path)
    path.write_bytes(b" " * (1 << 17))
    with pytest.raises(UsageError, match="more than"):
        load(folder, signer=path)


def test_a_path_that_is_not_there_is_a_wrong_call(keys: tuple[Pair, Pair], tmp_path: Path) -> None:
    for signed in (load, inspect):
        with pytest.raises(UsageError, match="there is no file"):
            signed(tmp_path / "none.pt", signer=keys[0].public)
