"""The values of the presets, and what they change for a training that starts from a network of the package."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# The networks that come with the package, with their sizes.
_BLOCKS: dict[str, float] = {"width": 32, "levels": 3, "unshuffle": 2, "negative_slope": 0.1}
SHIPPED: Mapping[str, Mapping[str, Any]] = {"cryo": _BLOCKS}

# The way in which a network of each method predicts, and settings without a use for the method.
METHODS: Mapping[str, Mapping[str, Any]] = {
    "icecream": {},
    "fast": {"passes": 1, "average_first": True, "test_time_mirrors": True},
    "noise2noise": {"passes": 1, "equivariance_weight": 0.0},
    "equivariant_imaging": {"passes": 1, "average_first": True},
}

# The settings that learn most per second of those compared in docs/benchmarks.md.
_QUICK: dict[str, Any] = {
    "method": "fast",
    **_BLOCKS,
    "side": 48,
    "fit_cubes": True,
    "batch": 1,
    "optimizer": "muon",
    "learning_rate": 2e-3,
    "warmup": 100,
    "schedule": "cosine",
    "margin": 2,
}

PRESETS: Mapping[str, Mapping[str, Any]] = {
    "paper": {"method": "icecream"},
    "fast": _QUICK | {"steps": 2000, "ema_decay": 0.998},
    "tiny": _QUICK | {"steps": 1000, "ema_decay": 0.995, "checkpoint_every": 250, "preview_every": 250},
}

# The warm-up of weights that are drawn from the seed.
SCRATCH_WARMUP: int = _QUICK["warmup"]

# What the presets change if a training starts from one of these networks, which has little left to learn. It fills the
# wedge better than a training on one tomogram, which denoises better: a blend of both is better than either. If the
# specimen is unlike all that the network has seen, the training begins again with the steps that it takes from scratch.
STARTED: Mapping[str, Mapping[str, Any]] = {
    "fast": {"steps": 400, "warmup": 20, "start_share": None, "restart_steps": PRESETS["fast"]["steps"]},
    "tiny": {
        "steps": 200,
        "warmup": 20,
        "start_share": None,
        "restart_steps": PRESETS["tiny"]["steps"],
        "checkpoint_every": 100,
        "preview_every": 100,
    },
}


def misfit(name: str, settings: Mapping[str, Any]) -> str | None:
    """Return why a training with these settings cannot start from a network of the package; ``None`` if it can.

    Examples
    --------
    >>> misfit("cryo", {"width": 64})
    'the network cryo has `width` 32 and not 64'
    """
    for size, own in SHIPPED[name].items():
        if settings[size] != own:
            return f"the network {name} has `{size}` {own} and not {settings[size]}"
    return None


def unsuited(name: str, settings: Mapping[str, Any]) -> str | None:
    """Return why a training with these settings does not start from a network of the package by itself.

    That is what :func:`misfit` returns, or that the training has little in common with that of the network.
    """
    if reason := misfit(name, settings):
        return reason
    if settings["method"] != "fast":
        return f"a start from the network {name} was not examined with `method` {settings['method']}"
    if settings["normalization"] == "scale":
        return f"the network {name} has seen no volumes with a true zero, which `normalization='scale'` keeps"
    return None
