"""Nets that are not what the tool takes for granted."""

from pathlib import Path

from tests.cases.case import GIFT, QUICK, Case


def _gift(folder: Path) -> list[str]:
    return ["scan", str(GIFT / "gift.safetensors"), "--images", str(GIFT / "clean.npz"), *QUICK]


CASES = (
    Case(
        name="control",
        fed="the shipped gift, cut short",
        right="a verdict that is no pass",
        make=_gift,
        status=(1, 3),
        seconds=30,
    ),
)
