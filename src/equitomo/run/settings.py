"""Settings of a prediction, as plain values: importing this module does not import torch."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Literal


@dataclass(frozen=True)
class TileSettings:
    """How a tomogram is cut into tiles for the network.

    Parameters
    ----------
    wedge
        Where the missing wedge is emptied before a second pass: inside small tiles, and only the wedge of the second
        result is kept ("local"); in the whole volume ("global"); inside the tiles of both passes ("tile").
    local_tile
        Voxels per side of the small tiles of "local"; 0 takes two strides of the network, and 16 voxels at least.
    tile
        Voxels per side of a tile; 0 takes what the memory of the device holds comfortably, from 112 to 240.
    tile_margin
        Voxels at every face of a tile that are computed and thrown away; "auto" measures for each tomogram how many
        the network needs.
    margin_tolerance
        The relative error in the network's values that "auto" allows.

    Raises
    ------
    ValueError
        If `margin_tolerance` is not positive.
    """

    wedge: Literal["local", "global", "tile"] = "local"
    local_tile: int = 0
    tile: int = 0
    tile_margin: int | Literal["auto"] = 24
    margin_tolerance: float = 0.01

    def __post_init__(self) -> None:
        if not self.margin_tolerance > 0:
            raise ValueError(f"`margin_tolerance` must be positive, got {self.margin_tolerance}")

    def changes(self) -> dict[str, Any]:
        """Return the settings that replace those of the run, by the names that its configuration has for them."""
        own = {field.name for field in fields(self)} - {field.name for field in fields(TileSettings)}
        return {name: value for name in own if (value := getattr(self, name)) is not None}


@dataclass(frozen=True)
class Prediction(TileSettings):
    """How a trained network is applied to a tomogram, where that may differ from the settings of its run.

    Parameters
    ----------
    precision
        Number format of the network.
    passes
        Passes of the network, between which the wedge is emptied; by default as the run was configured.
    average_first
        Average the halves before the network and not after it; by default as the run was configured.
    test_time_mirrors
        Average over the mirror images that leave the wedge where it is; by default as the run was configured.
    """

    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    passes: int | None = None
    average_first: bool | None = None
    test_time_mirrors: bool | None = None
