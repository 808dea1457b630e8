"""One pass of the network, or of the operator, over a whole volume."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from equitomo.inference._layout import TileLayout, in_batches
from equitomo.inference._replica import Replica, distribute
from equitomo.inference._voxels import Source, Target
from equitomo.io import scratch_array
from equitomo.tiling import Placement
from equitomo.volumes import Shape


@dataclass(frozen=True)
class VolumePasses:
    """The steps of which every strategy consists."""

    replicas: Sequence[Replica]
    layout: TileLayout
    # The folder for intermediate volumes; None keeps them in memory.
    scratch: str | Path | None
    # Called with the number of tiles that were finished.
    report: Callable[[int], None]

    def in_large_tiles(self, source: Source, target: Target, passes: int = 1) -> None:
        """Apply the network in large tiles, in each of them ``passes`` times with the wedge emptied in between."""
        batches = in_batches(self.layout.large(source.shape), self.layout.batch)
        self._run(partial(Replica.__call__, passes=passes), batches, source, target)

    def in_small_tiles(self, source: Source, target: Target) -> None:
        """Apply the network in small tiles, within each of which the wedge is emptied first."""
        batches = in_batches(self.layout.small(source.shape), self.layout.small_batch)
        self._run(Replica.after_wedge, batches, source, target)

    def empty_wedge(self, volume: NDArray[np.float32]) -> None:
        """Apply the operator to a whole volume, in place."""
        self.replicas[0].operators.apply_to_volume(volume, self.scratch)

    def scratch_volume(self, shape: Shape) -> NDArray[np.float32]:
        """Return a volume of zeros for an intermediate result."""
        return scratch_array(self.scratch, shape)

    def _run(
        self,
        network: Callable[[Replica, Tensor], Tensor],
        batches: Iterable[list[Placement]],
        source: Source,
        target: Target,
    ) -> None:
        """Apply a function to every batch of tiles and add their cores to the target."""

        def work(replica: Replica, placements: list[Placement]) -> tuple[list[Placement], Tensor]:
            tiles = np.stack([placement.read(source) for placement in placements])
            return placements, network(replica, torch.from_numpy(tiles)[:, None])

        for placements, tiles in distribute(self.replicas, batches, work):
            target.add(placements, tiles.numpy())
            source.release()
            self.report(len(placements))
