"""How much training a search takes, counted in finetunings, and how much it may take where no budget forces it to."""

from __future__ import annotations

from edgeprune.progress import Progress


class Effort:
    """The training of one search; a unit is one finetuning, with as many epochs as were asked for.

    A search that only looks for something smaller asks first what it can afford; one that has a stated budget to reach
    goes on, and says once that it takes longer. It `is_free` where nothing is trained, so that trying costs little.
    """

    def __init__(self, most: int, progress: Progress, is_free: bool = False) -> None:
        self._progress = progress
        self.most = most
        self.is_free = is_free
        self.spent = 0.0

    def affords(self, units: float, share: float = 1.0) -> bool:
        """Whether so many finetunings more are within the share of what it may take."""
        return self.is_free or self.spent + units <= share * self.most + 1e-9

    def take(self, units: float) -> None:
        """Count a training as long as so many finetunings."""
        before, self.spent = self.spent, self.spent + units
        if before <= self.most < self.spent:
            self._progress.say(
                f"more than {self.most} finetunings' worth of training: the budgets that are asked for take more; "
                "lower --finetune-epochs make each shorter"
            )
