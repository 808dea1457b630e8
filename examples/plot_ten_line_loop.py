"""
Training in a loop of your own
==============================

Question: how much code does it take to train ICECREAM without the trainer of this package?
"""

# %%
# We simulate two half tomograms of a specimen. You can read your own files with
# ``TomogramPair.read("even.mrc", "odd.mrc", tilts="series.tlt")`` instead.
import torch

from equitomo import (
    CubeRotationGroup,
    MaskedEquivarianceLoss,
    Noise2NoiseLoss,
    PaddedMissingWedgeOperator,
    ScaleEquivariantUNet3D,
    SubtomogramDataset,
    TiledPredictor,
    TiltGeometry,
    TomogramPair,
    TwoViewReconstructor,
)
from equitomo.metrics import fourier_correlation, region_masks
from equitomo.simulate import simulate_halves

geometry = TiltGeometry(range(-60, 61, 3))
generator = torch.Generator().manual_seed(0)
halves = simulate_halves((48, 48, 48), geometry, snr=1.0, generator=generator)
pair = TomogramPair(halves.first, halves.second, geometry)

# %%
# The operator, the group, the network and the losses are deepinv classes.
torch.manual_seed(0)
physics = PaddedMissingWedgeOperator((24, 24, 24), geometry)
group = CubeRotationGroup.moving(physics, rng=torch.Generator().manual_seed(0))
model = TwoViewReconstructor(ScaleEquivariantUNet3D(width=8, levels=3))
losses = Noise2NoiseLoss(margin=4), MaskedEquivarianceLoss(group, margin=4)
optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)

# %%
# Answer: this loop. A training step calls the network twice, each time with both halves in one batch.
cubes = SubtomogramDataset(pair, 24, length=400)
for batch in torch.utils.data.DataLoader(cubes, batch_size=2):
    y = batch["y"]
    x_net = model(y, physics)
    loss = sum(f(x_net=x_net, y=y, physics=physics, model=model).mean() for f in losses)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()

# %%
# The result: the correlation of the mean of the halves, and of the reconstruction, with the true specimen in the
# measured part of Fourier space and in the missing wedge.
reconstruction = TiledPredictor(model, geometry, tile=64, margin=8, passes=1)(*pair.volumes)
regions = region_masks(halves.truth.shape, geometry)
for name, volume in (("mean of the halves", pair.volumes.mean(0)), ("reconstruction", reconstruction)):
    measured = fourier_correlation(volume, halves.truth, mask=regions.measured)
    wedge = fourier_correlation(volume, halves.truth, mask=regions.wedge)
    print(f"{name:>20}: measured {measured:.3f}, wedge {wedge:.3f}")
