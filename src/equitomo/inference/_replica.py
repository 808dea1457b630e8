"""A network on one device, and the distribution of work over several."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from queue import SimpleQueue
from typing import TypeVar, cast

import torch
from torch import Tensor, nn

from equitomo.inference._network import device_of
from equitomo.inference._operators import Operators, Resizable
from equitomo.inference._splitting import SplittingFunction
from equitomo.precision import Precision, autocast, checked_dtype
from equitomo.resources import computing_threads

Item = TypeVar("Item")
Result = TypeVar("Result")


class Replica:
    """A network, used on the device and in the type of its parameters, and the operator A on that device.

    ``operator`` is ``None`` for a network that is applied only once. A tile that does not fit into the memory is cut
    into parts with this overlap, which start on multiples of ``stride``; an overlap of ``None`` forbids the cut.
    """

    def __init__(
        self,
        network: nn.Module,
        operator: Resizable | None,
        precision: Precision,
        overlap: int | None,
        stride: int,
    ) -> None:
        self.network, self.device = network, device_of(network)
        self._input_dtype = next(network.parameters(), torch.zeros(())).dtype
        self.dtype = checked_dtype(precision, self.device)
        self._operators = None if operator is None else Operators(operator, self.device)
        self._network = SplittingFunction(self._infer, [self.device], overlap, stride)

    @property
    def operators(self) -> Operators:
        """The operator, which a prediction in one pass does without."""
        assert self._operators is not None
        return self._operators

    # Inference mode belongs to a thread, and the tiles may be computed in another thread than the caller's.
    @torch.inference_mode()
    def __call__(self, x: Tensor, passes: int = 1) -> Tensor:
        """Return the network's output ``(batch, channel, z, y, x)``, with A applied to the tiles between passes.

        Tiles ``(batch, 1, z, y, x)`` come from the host and results go there.
        """
        result = self._network(x)
        for _ in range(passes - 1):
            result = self.after_wedge(result)
        return result

    @torch.inference_mode()
    def after_wedge(self, x: Tensor) -> Tensor:
        """Return the network's output for ``A(x)``, with A applied to each tile."""
        return self._network(self.operators(x))

    def _infer(self, x: Tensor, device: torch.device) -> Tensor:
        with autocast(self.dtype, device):
            result = cast(Tensor, self.network(x.to(device, self._input_dtype)))
        if result.ndim != 5 or len(result) != len(x) or result.shape[-3:] != x.shape[-3:]:
            raise ValueError(
                f"the network gives {tuple(result.shape)} for tiles of {tuple(x.shape)}, and must keep the number of "
                "tiles and (z, y, x): pad its convolutions, or wrap it in a module that pads"
            )
        if self._operators is not None and result.shape[1] != 1:
            raise ValueError(
                f"the network gives {result.shape[1]} channels and takes one, so it can only be applied once: pass "
                "`passes=1`"
            )
        return result.float().cpu()


def distribute(
    replicas: Sequence[Replica], items: Iterable[Item], work: Callable[[Replica, Item], Result]
) -> Iterator[Result]:
    """Give each item to the replica that is free next, and yield the results in the order of the items.

    Threads suffice: the time is spent in kernels, which run without the interpreter's lock, and what is read and
    written is shared.
    """
    if len(replicas) == 1:
        # The work is done in this thread, so that an interrupt need not wait for the tile.
        yield from (work(replicas[0], item) for item in items)
        return
    free: SimpleQueue[Replica] = SimpleQueue()
    for replica in replicas:
        free.put(replica)

    def with_next_replica(item: Item) -> Result:
        replica = free.get()
        try:
            return work(replica, item)
        finally:
            free.put(replica)

    begun: deque[Future[Result]] = deque()
    with computing_threads(len(replicas)) as pool:
        try:
            for item in items:
                begun.append(pool.submit(with_next_replica, item))
                # One more than there are replicas, so that none waits while a result is used.
                if len(begun) > len(replicas):
                    yield begun.popleft().result()
            while begun:
                yield begun.popleft().result()
        finally:
            for future in begun:
                future.cancel()
