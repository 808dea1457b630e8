"""
The blocks in a loop of one's own
=================================

Question: what does it take to train ICECREAM without this package's trainer?
"""

# %%
# Two half tomograms of a simulated specimen. With your own files:
# ``first, second = (read_volume(path).as_float32() for path in paths)``.
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
# Operator, group, network and losses: each is a deepinv class.
torch.manual_seed(0)
physics = PaddedMissingWedgeOperator((24, 24, 24), geometry)
group = CubeRotationGroup.moving(physics, rng=torch.Generator().manual_seed(0))
model = TwoViewReconstructor(ScaleEquivariantUNet3D(width=8, levels=3))
losses = Noise2NoiseLoss(margin=4), MaskedEquivarianceLoss(group, margin=4)
optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)

# %%
# The loop. Both halves go through the network in one call, a step makes two.
cubes = SubtomogramDataset(pair, 24, length=400)
for batch in torch.utils.data.DataLoader(cubes, batch_size=2):
    y = batch["y"]
    x_net = model(y, physics)
    loss = sum(f(x_net=x_net, y=y, physics=physics, model=model).mean() for f in losses)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()

# %%
# The answer: how well the mean of the halves and the reconstruction correlate with the truth, in the measured
# part of Fourier space and in the missing wedge.
reconstruction = TiledPredictor(model, geometry, tile=64, margin=8, passes=1)(*pair.volumes)
regions = region_masks(halves.truth.shape, geometry)
for name, volume in (("mean of the halves", pair.volumes.mean(0)), ("reconstruction", reconstruction)):
    measured = fourier_correlation(volume, halves.truth, mask=regions.measured)
    wedge = fourier_correlation(volume, halves.truth, mask=regions.wedge)
    print(f"{name:>20}: measured {measured:.3f}, wedge {wedge:.3f}")
