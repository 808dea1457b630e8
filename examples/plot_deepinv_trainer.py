"""
The blocks in deepinv's trainer
===============================

Question: do the dataset, the operator, the losses and the network fit :class:`deepinv.Trainer` as they are?
"""

# %%
# The same data as in the other example.
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
# One epoch of deepinv is one pass over the dataset, whose length is ours to choose. There is no ground truth, so
# no metric.
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
# The answer: yes. The data loss falls from epoch to epoch; the equivariance loss starts near zero, as a network that
# returns nothing contradicts nothing, and rises while the network begins to fill the wedge.
for name, values in trainer.loss_history.items():
    print(f"{name:>24}:", "  ".join(f"{float(value):.4f}" for value in values))
