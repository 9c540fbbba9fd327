"""Scan a model file from Python: open it safely, receive it with clean images, ask a detector.

python examples/scan_a_file.py [MODEL] [IMAGES] [REPORT.html]
"""

from __future__ import annotations

import sys
from pathlib import Path

from gifthorse.core.types import Report
from gifthorse.report import WRITERS, exit_code
from gifthorse.workflows.opening import Inputs
from gifthorse.workflows.scan import scan

GIFT = Path(__file__).parent / "gift"


def main(
    model: str = str(GIFT / "gift.safetensors"),
    images: str = str(GIFT / "clean.npz"),
    html: str = "",
) -> Report:
    """Scan, print the verdict and what speaks for it; write the HTML report if asked to."""
    result = scan(model, Inputs(images))
    print(f"{result.label}: {result.reason}")
    for verdict in result.verdicts:
        for arm in sorted(verdict.arms, key=lambda a: a.size)[:3]:
            found = f"{arm.size:6.1f} px" if arm.feasible else "nothing found"
            print(f"  class {arm.goal.target:3}  {found}  {arm.index:.1f} deviations below")
    print("not looked for:", "; ".join(result.not_covered))
    print("exit status:", exit_code(result))
    if html:
        Path(html).write_text(WRITERS["html"](result), encoding="utf-8")
    return result


if __name__ == "__main__":
    main(*sys.argv[1:4])
