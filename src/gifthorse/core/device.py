"""Which device a net runs on, and in which precision.

The convention of the package:

- A `Subject` lies on one device, `Subject.device`, that of its net's parameters and buffers.
- `Samples` stay on the CPU as uint8. What a method reads comes to the net a batch at a time: it
  looks at them through `gifthorse.data.samples.near`.
- What a method returns for people or files is on the CPU: triggers, sizes, scores, findings,
  evidence, predicted classes. Only a `Subject` that comes back stays where the one given was.
- Randomness comes from CPU generators, so that a seed draws the same on every device. Dropout alone
  draws from the device's own generator, which is seeded from ours.
- A trigger stamps images of any device, and the stamped ones are where the images were.
"""

from __future__ import annotations

import torch

from gifthorse.core.errors import BadOption


def choose(name: str = "auto") -> torch.device:
    """Return the device of a name, if it is there.

    Args:
        name: `auto` (a CUDA card, else Apple's GPU, else the CPU), `cpu`, `cuda`, `cuda:N` or
            `mps`.

    Raises:
        BadOption: If there is no such name, or no such device here.

    Example:
        >>> choose("cpu")
        device(type='cpu')
    """
    there = available()
    if name == "auto":
        return torch.device(max(there, key=lambda one: (one == "cuda:0", one == "mps")))
    wanted = "cuda:0" if name == "cuda" else name
    if wanted not in there:
        kind, _, number = name.partition(":")
        known = name == "mps" or (kind == "cuda" and (number.isdecimal() or name == "cuda"))
        what = f"there is no device {name}" if known else f"no device is called {name!r}"
        raise BadOption(
            f"{what}: expected auto, cpu, cuda, cuda:N or mps; here are {', '.join(there)}"
        )
    return torch.device(wanted)


def available() -> tuple[str, ...]:
    """Return the names of the devices of this machine, the CPU first."""
    cards = torch.cuda.device_count() if torch.cuda.is_available() else 0
    apple = ("mps",) if torch.backends.mps.is_available() else ()
    return "cpu", *(f"cuda:{n}" for n in range(cards)), *apple


def half(device: torch.device) -> torch.dtype | None:
    """Return the 16-bit type that convolutions are quick in here; None if float32 is as good.

    bfloat16 where processor (AMX, AVX512-BF16) or card have it in hardware, float16 on cards that
    have tensor cores for that alone (compute capability 7). Apple's GPUs stay in float32.
    """
    if device.type == "cuda":
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return torch.bfloat16
        return torch.float16 if torch.cuda.get_device_capability(device)[0] >= 7 else None
    fast = torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
    return torch.bfloat16 if fast and device.type == "cpu" else None
