"""A network on one device, and work for several of them."""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from queue import SimpleQueue
from typing import TypeVar, cast

import torch
from torch import Tensor, nn

from equitomo.inference._fitting import Fitting
from equitomo.physics import MissingWedgeOperator, PaddedMissingWedgeOperator
from equitomo.precision import Precision, autocast, checked_dtype

WedgeOperator = MissingWedgeOperator | PaddedMissingWedgeOperator
Item = TypeVar("Item")
Result = TypeVar("Result")

_CPU = torch.device("cpu")


class Replica:
    """A network and the operator that empties the wedge of its output, on the network's device.

    Parameters
    ----------
    network
        Used where it is, in the type of its parameters.
    operator
        Of any size and on any device: copies are made for other sizes and for this device.
    precision
        Of the network.
    overlap, stride
        Of the parts of a tile that does not fit into the memory; see :class:`Fitting`.
    """

    def __init__(
        self, network: nn.Module, operator: WedgeOperator, precision: Precision, overlap: int, stride: int
    ) -> None:
        parameter = next(network.parameters(), torch.zeros(()))
        self.network, self._operator = network, operator
        self.device, self._input_dtype = parameter.device, parameter.dtype
        self.dtype = checked_dtype(precision, self.device)
        self._network = Fitting(self._infer, overlap, stride)
        # What cannot be cut in space may still fit into the host's memory.
        on_cpu = partial(self._without_wedge, device=_CPU) if self.device != _CPU else None
        self._empty = Fitting(partial(self._without_wedge, device=self.device), on_cpu=on_cpu)

    # Of this thread, whatever mode the one is in that waits for it.
    @torch.inference_mode()
    def __call__(self, x: Tensor, passes: int = 1) -> Tensor:
        """The network's values for tiles ``(batch, 1, z, y, x)``, with the wedge emptied within them between passes.

        Tiles come from the host and results go there.
        """
        result = self._network(x)
        for _ in range(passes - 1):
            result = self._network(self._empty(result))
        return result

    @torch.inference_mode()
    def emptied(self, x: Tensor) -> Tensor:
        """The network's values for tiles ``(batch, 1, z, y, x)`` after the wedge was emptied within them."""
        return self._network(self._empty(x))

    def operator_for(self, shape: tuple[int, ...], device: torch.device | None = None) -> WedgeOperator:
        """The operator of a size, on this device or another one."""
        device = self.device if device is None else device
        if self._operator.volume_shape != shape:
            self._operator = self._operator.resized(shape)
        if self._operator.mask.device != device:
            # A copy: the caller's operator stays where it is.
            self._operator = cast(WedgeOperator, self._operator.clone().to(device))
        return self._operator

    def _infer(self, x: Tensor) -> Tensor:
        with autocast(self.dtype, self.device):
            return cast(Tensor, self.network(x.to(self.device, self._input_dtype))).float().cpu()

    def _without_wedge(self, x: Tensor, device: torch.device) -> Tensor:
        return self.operator_for(tuple(x.shape[-3:]), device).A(x.to(device)).cpu()


def copies(network: nn.Module, devices: Sequence[torch.device]) -> list[nn.Module]:
    """A network for each device: itself for the first that it is on, copies for the others."""
    own = next(network.parameters(), torch.zeros(())).device
    place = devices.index(own) if own in devices else None
    return [network if i == place else copy.deepcopy(network).to(device) for i, device in enumerate(devices)]


def spread(
    replicas: Sequence[Replica], items: Iterable[Item], work: Callable[[Replica, Item], Result]
) -> Iterator[tuple[Item, Result]]:
    """Give each item to the replica that is free next; items and results in the order of the items.

    Threads do: the time goes into kernels, which run without the interpreter's lock, and what is read and written
    is shared.
    """
    if len(replicas) == 1:
        # In this thread: an interrupt then need not wait for the tile.
        yield from ((item, work(replicas[0], item)) for item in items)
        return
    free: SimpleQueue[Replica] = SimpleQueue()
    for replica in replicas:
        free.put(replica)

    def with_the_next(item: Item) -> Result:
        replica = free.get()
        try:
            return work(replica, item)
        finally:
            free.put(replica)

    begun: deque[tuple[Item, Future[Result]]] = deque()
    with ThreadPoolExecutor(len(replicas)) as pool:
        try:
            for item in items:
                begun.append((item, pool.submit(with_the_next, item)))
                # One more than there are replicas, so that none waits while a result is used.
                if len(begun) > len(replicas):
                    yield _first(begun)
            while begun:
                yield _first(begun)
        finally:
            for _, future in begun:
                future.cancel()


def _first(begun: deque[tuple[Item, Future[Result]]]) -> tuple[Item, Result]:
    item, future = begun.popleft()
    return item, future.result()
