"""Our variant of ICECREAM, which reaches the same quality in less time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial

from deepinv.loss import Loss
from deepinv.physics import Physics

from equitomo.loss import MaskedEquivarianceLoss, Noise2NoiseLoss
from equitomo.methods.augmentation import exchange_tilts, mirror_cubes
from equitomo.methods.parts import operator, rotations, unet
from equitomo.training import Method, TrainingConfig

# Voxels by which cubes are cut larger before tilts are exchanged; see exchange_tilts for what that changes.
CUT_MARGIN = 0


def method(config: TrainingConfig, *, cut_margin: int | None = None) -> Method:
    r"""Return a method with the data as source and target of the equivariance loss.

    .. math:: \mathcal{L}_{\text{equi}} = \tfrac12 \sum_v \mathbb{E}_g
        \lVert A \{ R_g^{-1} f(A R_g z_v) - y_{\bar v} \} \rVert^2, \qquad z_v = y_v + (1 - A) f(y_v) .

    The network then learns to fill the wedge of its input including the noise, as in the training of DeepDeWedge
    (:cite:t:`wiedemann2024deep`), and one pass suffices in predictions. No gradient goes through the source
    :math:`z_v`, and the corners of Fourier space beyond Nyquist are kept. Every cube is mirrored at random in a way
    that keeps its wedge, and random sectors of tilts are exchanged between its halves.

    Parameters
    ----------
    config
        The settings.
    cut_margin
        Voxels by which cubes are cut larger at each face before tilts are exchanged, and cropped afterwards; ``None``
        for ``CUT_MARGIN``. See :func:`equitomo.methods.exchange_tilts`.
    """
    margin = CUT_MARGIN if cut_margin is None else cut_margin

    def losses(physics: Physics) -> Mapping[str, Loss]:
        return {
            "data": Noise2NoiseLoss(config.data_weight, margin=config.margin, mask_target=True),
            "equivariance": MaskedEquivarianceLoss(
                rotations(physics, config.flips),
                config.equivariance_weight,
                margin=config.margin,
                stop_gradient="source",
                source="data",
                target="data",
            ),
        }

    mirror = partial(mirror_cubes, flips=config.flips)
    parts = Method("fast", unet(config), operator(config, support="box"), losses, (mirror, exchange_tilts))
    if margin:
        return replace(parts, augmentations=(mirror,), larger_augmentations=(exchange_tilts,), cut_margin=margin)
    return parts
