"""Attacks, to make labeled test models for defenses."""

from gifthorse.attacks.badnet import BadNet
from gifthorse.types import Attack

ATTACKS: dict[str, Attack] = {"badnet": BadNet()}

__all__ = ["ATTACKS", "BadNet"]
