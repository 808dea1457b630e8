"""
Training with deepinv's trainer
===============================

Question: do the dataset, the operator, the losses and the network work in :class:`deepinv.Trainer` as they are?
"""

# %%
# We simulate two half tomograms of a specimen.
import deepinv
import torch

from equitomo import (
    CubeRotationGroup,
    MaskedEquivarianceLoss,
    Noise2NoiseLoss,
    PaddedMissingWedgeOperator,
    ScaleEquivariantUNet3D,
    SubtomogramDataset,
    TiltGeometry,
    TomogramPair,
    TwoViewReconstructor,
)
from equitomo.simulate import simulate_halves

geometry = TiltGeometry(range(-60, 61, 3))
halves = simulate_halves((32, 32, 32), geometry, snr=1.0, generator=torch.Generator().manual_seed(0))
pair = TomogramPair(halves.first, halves.second, geometry)

# %%
# An epoch of deepinv is one pass over the dataset. The dataset draws random cubes, so its length is free to choose. As
# there is no ground truth, no metric can be computed.
torch.manual_seed(0)
physics = PaddedMissingWedgeOperator((16, 16, 16), geometry)
model = TwoViewReconstructor(ScaleEquivariantUNet3D(width=4, levels=3))
trainer = deepinv.Trainer(
    model=model,
    physics=physics,
    optimizer=torch.optim.Adam(model.parameters(), lr=2e-3),
    train_dataloader=torch.utils.data.DataLoader(SubtomogramDataset(pair, 16, length=40), batch_size=2),
    losses=[Noise2NoiseLoss(), MaskedEquivarianceLoss(CubeRotationGroup.moving(physics))],
    metrics=None,
    compute_train_metrics=False,
    epochs=4,
    device="cpu",
    save_path=None,
    show_progress_bar=False,
    verbose=False,
    non_blocking_transfers=False,
)
trainer.train()

# %%
# Answer: yes. The data loss falls from epoch to epoch. The equivariance loss starts near zero, because the output of an
# untrained network is near zero and therefore equivariant, and it rises while the network begins to fill the wedge.
for name, values in trainer.loss_history.items():
    print(f"{name:>24}:", "  ".join(f"{float(value):.4f}" for value in values))
