"""Attacks, to make labeled test models for defenses."""

from gifthorse.attacks.abe import ABE
from gifthorse.attacks.badnet import BadNet
from gifthorse.attacks.blended import Blended
from gifthorse.attacks.blind import Blind
from gifthorse.attacks.ftrojan import FTrojan
from gifthorse.attacks.imc.abs import AgainstABS
from gifthorse.attacks.imc.ar import AgainstAR
from gifthorse.attacks.imc.attack import IMC, Inner
from gifthorse.attacks.imc.mp import AgainstMP
from gifthorse.attacks.imc.nc import Fidelity
from gifthorse.attacks.imc.strip import AgainstSTRIP
from gifthorse.attacks.input_aware import InputAware
from gifthorse.attacks.instagram import Instagram
from gifthorse.attacks.invisible import Invisible
from gifthorse.attacks.label_consistent import LabelConsistent
from gifthorse.attacks.latent import Latent
from gifthorse.attacks.lsb import Lsb
from gifthorse.attacks.natural import Natural
from gifthorse.attacks.polygon import Polygon
from gifthorse.attacks.reflection import ReflectionPatch
from gifthorse.attacks.refool import Refool
from gifthorse.attacks.sig import Sig
from gifthorse.attacks.trojannet import TrojanNet
from gifthorse.attacks.trojannn import TrojanNN
from gifthorse.attacks.wanet import WaNet
from gifthorse.core.types import Attack
from gifthorse.inversion import PixelBackdoor
from gifthorse.search import SearchConfig
from gifthorse.training import Recipe

ATTACKS: dict[str, Attack] = {
    "abe": ABE(),
    "badnet": BadNet(),
    "blended": Blended(),
    "blind": Blind(),
    "ftrojan": FTrojan(),
    "imc": IMC(),
    "imc_abs": IMC(abs=AgainstABS(weight=1e-5)),
    "imc_ar": IMC(ar=AgainstAR(steps=7)),
    "imc_mp": IMC(mp=AgainstMP(recipe=Recipe(epochs=10, lr=1.0, decay=0.0))),
    "imc_nc": IMC(fidelity=Fidelity(opacity="shared")),
    "imc_strip": IMC(strip=AgainstSTRIP(copies=1.0)),
    "imc_trojannn": IMC(  # the paper's TrojanNN*: sec. 5.3, both terms
        inner=Inner(start="trojannn"),
        fidelity=Fidelity(opacity="shared"),
        strip=AgainstSTRIP(entropy=1.0),
    ),
    "input_aware": InputAware(),
    "instagram": Instagram(),
    "invisible": Invisible(),
    "label_consistent": LabelConsistent(),
    "latent": Latent(),
    "lsb": Lsb(),
    "natural": Natural(
        PixelBackdoor(mode="clip", config=SearchConfig(success_threshold=0.9, rounds=1000))
    ),
    "polygon": Polygon(),
    "refool": Refool(),
    "reflection": ReflectionPatch(),
    "sig": Sig(),
    "trojannet": TrojanNet(),
    "trojannn": TrojanNN(),
    "wanet": WaNet(),
}

__all__ = [
    "ABE",
    "ATTACKS",
    "IMC",
    "BadNet",
    "Blended",
    "Blind",
    "FTrojan",
    "InputAware",
    "Instagram",
    "Invisible",
    "LabelConsistent",
    "Latent",
    "Lsb",
    "Natural",
    "Polygon",
    "ReflectionPatch",
    "Refool",
    "Sig",
    "TrojanNN",
    "TrojanNet",
    "WaNet",
]
