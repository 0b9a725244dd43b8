"""What a forward leaves for the next one in buffers of its own."""

from __future__ import annotations

from torch import nn


def let_state_go(module: nn.Module) -> None:
    """Let what a forward wrote to buffers be numbers to the next one, without the gradients that they were made of.

    Else the next backward pass would go through the graph of this one, which is gone.
    """
    for owner in module.modules():
        for name, buffer in list(owner.named_buffers(recurse=False)):
            if buffer.requires_grad:
                setattr(owner, name, buffer.detach())
