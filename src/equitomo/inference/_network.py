"""The network of a prediction: its mode, its copies, and whether its result depends on the tiles."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn

_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
_INSTANCE_NORMS = (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)


def device_of(network: nn.Module) -> torch.device:
    """Return the device of the parameters, the CPU for a network without any."""
    return next(network.parameters(), torch.zeros(())).device


def copies(network: nn.Module, devices: Sequence[torch.device]) -> list[nn.Module]:
    """Return a network for each device: the given one for the first that it is on, copies for the others."""
    own = device_of(network)
    place = devices.index(own) if own in devices else None
    return [network if i == place else copy.deepcopy(network).to(device) for i, device in enumerate(devices)]


def normalization_layers(network: nn.Module) -> list[str]:
    """Return the names of the layers that normalise with statistics of their input, in the mode they are in.

    Examples
    --------
    >>> normalization_layers(torch.nn.Sequential(torch.nn.Conv3d(1, 4, 3), torch.nn.InstanceNorm3d(4)))
    ['1 (InstanceNorm3d)']
    """
    return [f"{name} ({type(layer).__name__})" for name, layer in network.named_modules() if _uses_statistics(layer)]


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Put a network into evaluation mode, and restore the mode of every module afterwards."""
    # The modes are restored one by one because a part may have been frozen in evaluation mode before.
    training = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        yield
    finally:
        for module, mode in training:
            module.training = mode


def _uses_statistics(layer: nn.Module) -> bool:
    if isinstance(layer, (*_BATCH_NORMS, *_INSTANCE_NORMS)):
        return layer.training or layer.running_mean is None
    # Over the channels alone it normalises each voxel on its own.
    over_space = isinstance(layer, nn.LayerNorm | nn.RMSNorm) and len(layer.normalized_shape) > 1
    return over_space or isinstance(layer, nn.GroupNorm)
