"""What the operators of ONNX compute, on tensors, with gradients.

Each takes its inputs (None where an optional one is left out) and its settings, and is meant as
the specification says it for opset 7 and later; what moved from a setting to an input between
opsets is read from either.

Source: ONNX, docs/Operators.md and docs/Changelog.md.
"""

from __future__ import annotations

from collections.abc import Mapping

from gifthorse.models.graphs.elements import ELEMENTS
from gifthorse.models.graphs.inputs import Function
from gifthorse.models.graphs.reductions import REDUCTIONS
from gifthorse.models.graphs.shapes import SHAPES

FUNCTIONS: Mapping[str, Function] = {**ELEMENTS, **SHAPES, **REDUCTIONS}
