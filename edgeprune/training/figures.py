"""An epoch in figures, for those who keep them or draw them."""

from __future__ import annotations

from edgeprune.results import EpochRecord


def figures_of(epoch: EpochRecord, val_loss: float) -> dict[str, float]:
    """What is known of an epoch by its name; accuracies are fractions in [0, 1]."""
    known = {
        "train/loss": epoch.loss,
        f"train/{epoch.metric}": epoch.train_value,
        "val/loss": val_loss,
        f"val/{epoch.metric}": epoch.val_value,
        "train/input features": epoch.n_features,
    }
    return {name: value for name, value in known.items() if value is not None}
