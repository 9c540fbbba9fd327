"""Keys made for a test, and models signed with them by the signers' own library."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

REASON = "needs gifthorse[signing]"
ec = pytest.importorskip("cryptography.hazmat.primitives.asymmetric.ec", reason=REASON)
serialization = pytest.importorskip("cryptography.hazmat.primitives.serialization", reason=REASON)
hashing = pytest.importorskip("model_signing.hashing", reason=REASON)
signing = pytest.importorskip("model_signing.signing", reason=REASON)


class Pair:
    """A private key and its public one, as files."""

    def __init__(self, folder: Path, name: str, curve: Any = None) -> None:
        key = ec.generate_private_key(curve or ec.SECP256R1())
        pem = serialization.Encoding.PEM
        self.private, self.public = folder / f"{name}.pem", folder / f"{name}.pub"
        self.private.write_bytes(
            key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        )
        self.public.write_bytes(public_pem(key.public_key()))

    def sign(
        self, model: Path, signature: Path, how: Any = None, ignored: tuple[str, ...] = ()
    ) -> None:
        """Sign a file or a folder, with the signature itself left out as their command does."""
        asked = how or hashing.Config()
        asked.set_ignored_paths(paths=[signature.name, *ignored])
        config = signing.Config().use_elliptic_key_signer(private_key=self.private)
        config.set_hashing_config(asked).sign(model, signature)


def public_pem(key: Any) -> bytes:
    """Return a public key as PEM."""
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    made: bytes = key.public_bytes(serialization.Encoding.PEM, form)
    return made
