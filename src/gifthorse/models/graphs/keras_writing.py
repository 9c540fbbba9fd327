"""Operations of a Keras net, written down one after another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from gifthorse.core.errors import UnreadableModel
from gifthorse.models.graphs.graph import OPERATIONS, Operation, Setting
from gifthorse.models.reading.entries import shown

WHOLE, OURS = (0, 2, 3, 1), (0, 3, 1, 2)  # from our order to that of Keras, and back


def odd(name: object, what: str) -> UnreadableModel:
    """Return the refusal of a layer."""
    return UnreadableModel(f"the Keras layer {shown(str(name), 60)!r} {what}", rule="FS009")


def plain(value: Any, default: float) -> float:
    """Return a number of a configuration, which may be wrapped or left out.

    Raises:
        UnreadableModel: If it is none.
    """
    value = value.get("config", {}).get("value") if isinstance(value, dict) else value
    if value is None:
        return default
    if not isinstance(value, int | float):
        raise UnreadableModel(f"a Keras layer has {value!r:.40}: expected a number", rule="FS009")
    return value


def pair_of(config: Mapping[str, Any], name: str, default: int) -> tuple[int, int]:
    """Return rows and columns of a setting that may be one number for both."""
    told = config.get(name, default)
    told = [told, told] if isinstance(told, int) else told
    if not isinstance(told, list | tuple) or [type(n) for n in told] != [int, int]:
        raise odd(config.get("name"), f"has {name} {told!r:.40}: expected two numbers")
    return told[0], told[1]


@dataclass
class Writer:
    """Operations as they are written down.

    Attributes:
        shapes: Of the file's tensors, by name.
        version: Of Keras; some functions changed with it.
        first: Whether the net's images have channels first.
        layer: Name of the layer that is being written.
        operations: What was written.
        ranks: Dimensions of each value.
    """

    shapes: Mapping[str, tuple[int, ...]]
    version: int = 3
    first: bool = False
    layer: str = ""
    operations: list[Operation] = field(default_factory=list)
    ranks: dict[str, int] = field(default_factory=dict)

    def add(
        self, op: str, inputs: Sequence[str], rank: int | None = None, **settings: Setting
    ) -> str:
        """Write an operation.

        Args:
            op: Operator.
            inputs: Names of what it reads.
            rank: Dimensions of what it gives; None for those of its first input.
            settings: Its attributes.

        Returns:
            The name of what it gives.
        """
        out = f"{op}_{len(self.operations)}"
        if len(self.operations) > OPERATIONS:
            raise UnreadableModel("the Keras net has more layers than any net", rule="FS004")
        self.operations.append(Operation(op, self.layer, tuple(inputs), (out,), settings))
        self.ranks[out] = self.ranks.get(inputs[0], 0) if rank is None else rank
        return out

    def constant(self, values: Sequence[float], *shape: int) -> str:
        """Write down numbers."""
        floats = tuple(float(v) for v in values)
        return self.add("Constant", (), len(shape), value_floats=floats, shape=shape)

    def turned(self, x: str) -> str:
        """Return images in Keras' order; everything else as it is."""
        return self.add("Transpose", [x], perm=WHOLE) if self._is_image(x) else x

    def back(self, x: str) -> str:
        """Return images in our order; everything else as it is."""
        return self.add("Transpose", [x], perm=OURS) if self._is_image(x) else x

    def axis(self, x: str, axis: int) -> int:
        """Return an axis of Keras as ours."""
        axis = axis % max(1, self.ranks[x])
        return OURS.index(axis) if self._is_image(x) else axis

    def _is_image(self, x: str) -> bool:
        return self.ranks[x] == 4 and not self.first
