"""A simulated GPU with little memory: the host computes, but tensors report the device "cuda"."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

CUDA = torch.device("cuda")
_to = Tensor.to


class OnDevice(Tensor):
    """A tensor that reports to be on a GPU, which has no room for tensors of more than ``room`` numbers."""

    room = math.inf

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function == Tensor.device.__get__:
            return CUDA
        result = super().__torch_function__(function, types, args, kwargs or {})
        if not isinstance(result, Tensor):
            return result
        return result.as_subclass(Tensor) if function is Tensor.cpu else _with_room(result)


def play_device(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Let tensors move to "cuda"; the returned function sets how many numbers one of them may hold there."""
    monkeypatch.setattr(Tensor, "to", _moved)
    return lambda room: monkeypatch.setattr(OnDevice, "room", room)


def on_device(network: nn.Module) -> nn.Module:
    """Move the parameters of a network to the simulated GPU, and return the network."""
    for module in network.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                module._parameters[name] = nn.Parameter(parameter.data.as_subclass(OnDevice))
    return network


def _moved(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    if not args or isinstance(args[0], torch.dtype):
        return _to(x, *args, **kwargs)
    there = torch.device(args[0]).type == "cuda"
    # A tensor that is there already is not moved, as on a real device.
    plain = _to(x if there else x.as_subclass(Tensor), torch.device("cpu"), *args[1:], **kwargs)
    return _with_room(plain) if there else plain


def _with_room(x: Tensor) -> Tensor:
    if x.numel() > OnDevice.room:
        raise torch.OutOfMemoryError(f"CUDA out of memory. Tried to allocate {4 * x.numel()} bytes")
    return x.as_subclass(OnDevice)
