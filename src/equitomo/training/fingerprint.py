"""Descriptions of networks, losses and operators, by which a resumed run checks that it has the same ones."""

from __future__ import annotations

import functools
import json
import math
import sys
from collections.abc import Iterator, Mapping, Sequence, Set
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

# The relative difference that the same formula may give on two machines.
_TOLERANCE = 1e-4
# Attributes that say where and how a module runs, and not what it computes.
_INCIDENTAL = {"training", "checkpointing", "device", "name"}


def describe(part: object, *, values: bool = True) -> dict[str, Any]:
    """Return the class, the settings and the state of a network, a loss or an operator, in a form that JSON can hold.

    The settings are the public attributes of the module and of its submodules, if they are numbers, texts, functions
    or made of these, and the text of the module, which contains ``extra_repr``. A tensor of the state is described by
    its shape and, with ``values``, by three sums over its elements, which tell tensors apart and do not depend on
    rounding.
    """
    found: dict[str, Any] = {"class": _name(type(part))}
    if isinstance(part, nn.Module):
        found["text"] = str(part)
        for name, module in part.named_modules():
            found |= {f"{name}.{key}".lstrip("."): value for key, value in _settings(module).items()}
        found["state"] = {name: _of_tensor(value, values) for name, value in _state(part)}
    else:
        found |= _settings(part) if hasattr(part, "__dict__") else {}
        found["value"] = _plain(part)
    described: dict[str, Any] = json.loads(json.dumps(found))
    return described


def differences(before: object, now: object, path: str = "") -> Iterator[str]:
    """Yield a phrase for each entry in which two descriptions differ, numbers within rounding."""
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        for key in [*before, *(key for key in now if key not in before)]:
            inner = f"{path}.{key}" if path else str(key)
            if key in before and key in now:
                yield from differences(before[key], now[key], inner)
            else:
                yield f"{inner} {'is no longer there' if key in before else 'is new'}"
    elif isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        for number, pair in enumerate(zip(before, now, strict=True)):
            yield from differences(*pair, f"{path}[{number}]")
    elif not _equal(before, now):
        yield f"{path} was {_short(before)}, now {_short(now)}"


def _settings(part: object) -> dict[str, Any]:
    return {
        name: _plain(value)
        for name, value in vars(part).items()
        if not name.startswith("_") and name not in _INCIDENTAL and not isinstance(value, (nn.Module, torch.Generator))
    }


def _plain(value: object, depth: int = 3) -> Any:
    """Return a value in a form that JSON can hold; an object becomes its class and its public attributes."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Tensor):
        return _of_tensor(value, True)
    if isinstance(value, (np.ndarray, np.generic)):
        return _of_tensor(torch.as_tensor(np.asarray(value, np.float64)), True)
    if isinstance(value, functools.partial):
        return {"function": _plain(value.func), "arguments": _plain([*value.args, value.keywords])}
    if callable(value) and hasattr(value, "__qualname__"):
        return _name(value)
    if depth == 0:
        return _name(type(value))
    if isinstance(value, Mapping):
        return {str(key): _plain(inner, depth - 1) for key, inner in value.items()}
    if isinstance(value, Set):
        return sorted(str(inner) for inner in value)
    if isinstance(value, Sequence):
        return [_plain(inner, depth - 1) for inner in value]
    fields = getattr(value, "__dataclass_fields__", {}).values()
    held = getattr(value, "__dict__", None) or {field.name: getattr(value, field.name) for field in fields}
    public = {key: inner for key, inner in held.items() if not key.startswith("_")}
    return {"class": _name(type(value))} | {key: _plain(inner, depth - 1) for key, inner in public.items()}


def _state(part: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from part.named_parameters()
    yield from part.named_buffers()


def _of_tensor(value: Tensor, values: bool) -> list[Any]:
    shape = list(value.shape)
    if not values:
        return shape
    flat = torch.view_as_real(value).flatten() if value.is_complex() else value.flatten()
    flat = flat.detach().cpu().double()
    # The third sum depends on the order of the values.
    weight = torch.cos(torch.arange(len(flat), dtype=torch.float64))
    return [shape, float(flat.mean()), float(flat.square().mean().sqrt()), float((flat * weight).mean())]


def _name(kind: Any) -> str:
    """Return the qualified name of a class or function, the same in a script and where the script is imported."""
    module, main = kind.__module__, sys.modules["__main__"]
    if module == "__main__":
        spec, file = getattr(main, "__spec__", None), getattr(main, "__file__", None)
        module = spec.name if spec is not None else Path(file).stem if file else module
    return f"{module}.{kind.__qualname__}"


def _equal(one: object, other: object) -> bool:
    if isinstance(one, float) or isinstance(other, float):
        numbers = isinstance(one, (int, float)) and isinstance(other, (int, float))
        return numbers and (math.isclose(one, other, rel_tol=_TOLERANCE, abs_tol=1e-9) or one is other)  # type: ignore[arg-type]
    return type(one) is type(other) and one == other


def _short(value: object) -> str:
    text = " ".join(str(value).split())
    return text if len(text) <= 100 else f"{text[:97]}..."
