"""The techniques of MITRE ATLAS that a rule's finding is a sign of."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

VERSION = "5.6.0"
ADDRESS = "https://atlas.mitre.org"

TECHNIQUES: Mapping[str, str] = MappingProxyType(
    {
        "AML.T0011.000": "Unsafe AI Artifacts",
        "AML.T0018.000": "Poison AI Model",
        "AML.T0018.001": "Modify AI Model Architecture",
        "AML.T0018.002": "Embed Malware",
        "AML.T0020": "Poison Training Data",
        "AML.T0029": "Denial of AI Service",
        "AML.T0043.004": "Insert Backdoor Trigger",
        "AML.T0076": "Corrupt AI Model",
    }
)
_POISONED, _BROKEN = ("AML.T0018.000",), ("AML.T0076",)
SIGNS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        **{f"BD00{n}": _POISONED for n in range(1, 9)},
        "BD009": ("AML.T0018.001",),
        "BD010": _POISONED,
        "BD011": _POISONED,
        "DS001": ("AML.T0020",),
        "DS002": ("AML.T0043.004",),
        "FS001": ("AML.T0018.002", "AML.T0011.000"),
        "FS002": ("AML.T0011.000",),
        "FS004": ("AML.T0029",),
        "FS006": ("AML.T0011.000",),
        "FS008": _BROKEN,
    }
)


def page(technique: str) -> str:
    """Return the address of a technique's page."""
    return f"{ADDRESS}/techniques/{technique}"
