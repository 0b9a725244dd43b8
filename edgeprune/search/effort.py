"""How much training a search takes, counted in finetunings, and how much it may take where no budget forces it to."""

from __future__ import annotations

from edgeprune.progress import Progress


class Effort:
    """The training of one search; a unit is one finetuning, with as many epochs as were asked for.

    A search that only looks for something smaller asks first what it can afford; one that has a stated budget to reach
    goes on, and says once that it takes longer.
    """

    def __init__(self, epochs: int, most: int, progress: Progress) -> None:
        self._epochs, self._progress = epochs, progress
        self.most = most
        self.spent = 0.0

    @property
    def is_free(self) -> bool:
        """Whether nothing is trained, so that trying costs little."""
        return self._epochs == 0

    def affords(self, units: float, share: float = 1.0) -> bool:
        """Whether so many finetunings more are within the share of what it may take."""
        return self.is_free or self.spent + units <= share * self.most + 1e-9

    def take(self, epochs: int) -> None:
        """Count a training of so many epochs."""
        before, self.spent = self.spent, self.spent + (epochs / self._epochs if self._epochs else 0.0)
        if before <= self.most < self.spent:
            self._progress.say(
                f"more than {self.most} finetunings' worth of training: the budgets that are asked for take more; "
                "lower --finetune-epochs make each shorter"
            )
