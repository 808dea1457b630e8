"""The device and the number format a network computes in."""

from __future__ import annotations

from typing import Literal

import torch

Precision = Literal["auto", "float32", "bfloat16", "float16"]

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def chosen_device(name: str) -> torch.device:
    """The device of a name; ``"auto"`` is the GPU if there is one.

    Raises
    ------
    ValueError
        For an unknown name, or a device that is not there.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    # torch says that it was built without CUDA by an assertion.
    except (RuntimeError, AssertionError) as error:
        raise ValueError(
            f"device {name!r} cannot be used here ({str(error).splitlines()[0]}): use 'auto' or 'cpu'"
        ) from error
    return device


def resolved(precision: Precision, device: torch.device) -> torch.dtype:
    """The format ``"auto"`` stands for: bfloat16 where the hardware computes in it, else float16 on a GPU.

    Raises
    ------
    ValueError
        For an unknown name.
    """
    if precision == "auto":
        if device.type == "cpu":
            # Without these instructions bfloat16 is emulated, slower than float32.
            able = torch.cpu.get_capabilities()
            return torch.bfloat16 if able.get("avx512_bf16") or able.get("amx_bf16") else torch.float32
        if device.type == "cuda":
            return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
        return torch.float32
    if precision not in _DTYPES:
        raise ValueError(f"precision is one of auto, {', '.join(_DTYPES)}, got {precision!r}")
    return _DTYPES[precision]


def autocast(dtype: torch.dtype, device: torch.device) -> torch.autocast:
    """Autocast to ``dtype``; float32 means none."""
    return torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32)
