"""Attacks, to make labeled test models for defenses."""

from gifthorse.attacks.abe import ABE
from gifthorse.attacks.badnet import BadNet
from gifthorse.attacks.blind import Blind
from gifthorse.attacks.latent import Latent
from gifthorse.attacks.reflection import ReflectionPatch
from gifthorse.attacks.refool import Refool
from gifthorse.attacks.trojannet import TrojanNet
from gifthorse.attacks.trojannn import TrojanNN
from gifthorse.types import Attack

ATTACKS: dict[str, Attack] = {
    "abe": ABE(),
    "badnet": BadNet(),
    "blind": Blind(),
    "latent": Latent(),
    "refool": Refool(),
    "reflection": ReflectionPatch(),
    "trojannet": TrojanNet(),
    "trojannn": TrojanNN(),
}

__all__ = [
    "ABE",
    "ATTACKS",
    "BadNet",
    "Blind",
    "Latent",
    "ReflectionPatch",
    "Refool",
    "TrojanNN",
    "TrojanNet",
]
