"""A text encoder as the package transformers builds it: token ids and a mask in, scores of a text's topics out."""

from __future__ import annotations

from torch import Tensor, nn
from transformers import DistilBertConfig, DistilBertModel


class Encoder(nn.Module):
    """DistilBERT, the mean of what it says of the words that the mask leaves in, and a linear layer over it.

    Sanh, Debut, Chaumond and Wolf, DistilBERT, a distilled version of BERT, 2019.
    """

    def __init__(self, config: DistilBertConfig, n_classes: int) -> None:
        super().__init__()
        self.bert = DistilBertModel(config)
        self.head = nn.Linear(config.dim, n_classes)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Whole numbers `(batch, length)` and 0 or 1 beside them in, scores `(batch, n_classes)` out."""
        hidden = self.bert(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        mask = attention_mask[..., None].to(hidden.dtype)
        out: Tensor = self.head((hidden * mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1))
        return out


def encoder(
    vocabulary: int = 600, n_classes: int = 4, width: int = 64, n_layers: int = 2, length: int = 32
) -> nn.Module:
    """The encoder, from a config: heads of 16 channels, and four times the width within each layer."""
    sizes = {"dim": width, "hidden_dim": 4 * width, "n_heads": width // 16, "n_layers": n_layers}
    config = DistilBertConfig(vocab_size=vocabulary, max_position_embeddings=length, **sizes)
    return Encoder(config, n_classes)
