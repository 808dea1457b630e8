"""Choose the device and the number format in which a network computes, and test them."""

from __future__ import annotations

import warnings
from typing import Literal

import torch

Precision = Literal["auto", "float32", "bfloat16", "float16"]

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def chosen_device(name: str) -> torch.device:
    """Return the device of a name; ``"auto"`` is the GPU if there is one.

    Raises
    ------
    ValueError
        If the name is unknown, or there is no such device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    # If torch was built without CUDA, it raises an AssertionError.
    except (RuntimeError, AssertionError) as error:
        raise ValueError(
            f"device {name!r} cannot be used here ({str(error).splitlines()[0]}): use 'auto' or 'cpu'"
        ) from error
    return device


def dtype_of(precision: Precision, device: torch.device) -> torch.dtype:
    """Return the number format of a name.

    ``"auto"`` is bfloat16 if the hardware computes in it, else float16 on a GPU and float32 on a CPU.

    Raises
    ------
    ValueError
        If the name is unknown.
    """
    if precision == "auto":
        if device.type == "cpu":
            # Without these instructions bfloat16 is emulated, which is slower than float32.
            able = torch.cpu.get_capabilities()
            return torch.bfloat16 if able.get("avx512_bf16") or able.get("amx_bf16") else torch.float32
        if device.type == "cuda":
            return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
        return torch.float32
    if precision not in _DTYPES:
        raise ValueError(f"`precision` must be one of auto, {', '.join(_DTYPES)}, got {precision!r}")
    return _DTYPES[precision]


def checked_dtype(precision: Precision, device: torch.device) -> torch.dtype:
    """Return the number format of a name, after a test that the device computes correctly in it.

    Some releases compute 3-D convolutions wrongly or slowly in 16 bits. The versions are compared with those known to
    be faulty, and a small convolution and its gradients are compared with those in float32. With ``"auto"`` a fault
    leads to float32 and a warning.

    Raises
    ------
    ValueError
        If a format that was chosen by name is faulty here; the message names the versions and the remedy.
    """
    dtype = dtype_of(precision, device)
    if dtype == torch.float32:
        return dtype
    fault = known_fault(torch.__version__, _cudnn_version(device)) or _measured_fault(dtype, device)
    if fault is None:
        return dtype
    if precision == "auto":
        warnings.warn(f"{fault}; computing in float32 instead, which is slower", stacklevel=2)
        return torch.float32
    raise ValueError(f"{fault}: pass `precision='float32'`, or install other versions")


def known_fault(torch_version: str, cudnn_version: int | None) -> str | None:
    """Return the known fault of 16-bit 3-D convolutions in these versions (91002 is cuDNN 9.10.2), or None."""
    if cudnn_version is None:
        return None
    names = f"torch {torch_version} with cuDNN {cudnn_version}"
    if 90800 <= cudnn_version < 91100:
        return f"{names} gives wrong 16-bit 3-D convolutions at large shapes (pytorch issue 163539)"
    if torch_version.startswith("2.9.") and cudnn_version < 91500:
        return f"{names} computes 16-bit 3-D convolutions many times slower and larger (pytorch issue 166643)"
    return None


def _cudnn_version(device: torch.device) -> int | None:
    """Return the version of cuDNN, or None on a device without it."""
    version = torch.backends.cudnn.version() if device.type == "cuda" else None  # type: ignore[no-untyped-call]
    return None if version is None else int(version)


def _measured_fault(dtype: torch.dtype, device: torch.device) -> str | None:
    """Return the fault of a small convolution and its gradients, or None if they agree with those in float32."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, 16, 24, 24, 24, generator=generator).to(device, memory_format=torch.channels_last_3d)
    weight = torch.randn(16, 16, 3, 3, 3, generator=generator).to(device) / 21
    results = []
    for enabled in (False, True):
        # Gradients are needed even if the caller has disabled them.
        with torch.inference_mode(False), torch.enable_grad():
            leaves = [x.clone().requires_grad_(), weight.clone().requires_grad_()]
            with torch.autocast(device.type, dtype=dtype, enabled=enabled):
                y = torch.nn.functional.conv3d(leaves[0], leaves[1], padding=1)
            results.append([y.detach(), *torch.autograd.grad(y.float().square().sum(), leaves)])
    for name, exact, found in zip(("values", "input gradient", "weight gradient"), *results, strict=True):
        error = float((found.float() - exact).norm() / exact.norm())
        # Rounding to 8 bits of mantissa gives about 0.004.
        if not error < 0.03:
            where = f"torch {torch.__version__} on {device}"
            return f"{where} computes 3-D convolutions in {dtype} with an error of {error:.0%} in the {name}"
    return None


def autocast(dtype: torch.dtype, device: torch.device) -> torch.autocast:
    """Return a context that casts to ``dtype`` automatically, or that does nothing for float32."""
    return torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32)
