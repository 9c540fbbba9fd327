"""Attacks, to make labeled test models for defenses."""

from gifthorse.attacks.abe import ABE
from gifthorse.attacks.badnet import BadNet
from gifthorse.attacks.blind import Blind
from gifthorse.attacks.imc import IMC
from gifthorse.attacks.imc_abs import AgainstABS
from gifthorse.attacks.imc_ar import AgainstAR
from gifthorse.attacks.imc_mp import AgainstMP
from gifthorse.attacks.imc_nc import Fidelity
from gifthorse.attacks.imc_strip import AgainstSTRIP
from gifthorse.attacks.latent import Latent
from gifthorse.attacks.reflection import ReflectionPatch
from gifthorse.attacks.refool import Refool
from gifthorse.attacks.trojannet import TrojanNet
from gifthorse.attacks.trojannn import TrojanNN
from gifthorse.training import Recipe
from gifthorse.types import Attack

ATTACKS: dict[str, Attack] = {
    "abe": ABE(),
    "badnet": BadNet(),
    "blind": Blind(),
    "imc": IMC(),
    "imc_abs": IMC(abs=AgainstABS(weight=1e-5)),
    "imc_ar": IMC(ar=AgainstAR(steps=7)),
    "imc_mp": IMC(mp=AgainstMP(recipe=Recipe(epochs=10, lr=1.0, decay=0.0))),
    "imc_nc": IMC(fidelity=Fidelity(opacity="shared")),
    "imc_strip": IMC(strip=AgainstSTRIP(copies=1.0)),
    "latent": Latent(),
    "refool": Refool(),
    "reflection": ReflectionPatch(),
    "trojannet": TrojanNet(),
    "trojannn": TrojanNN(),
}

__all__ = [
    "ABE",
    "ATTACKS",
    "IMC",
    "BadNet",
    "Blind",
    "Latent",
    "ReflectionPatch",
    "Refool",
    "TrojanNN",
    "TrojanNet",
]
