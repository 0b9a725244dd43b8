"""Networks of the package transformers, built small from their configurations: nothing is downloaded."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

_VOCABULARY = 200
_LENGTH = 12
_WIDTHS: dict[str, Any] = {
    "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128,
}  # fmt: skip

Built = tuple[nn.Module, tuple[Tensor, ...]]


def _tokens() -> tuple[Tensor, Tensor]:
    """Token ids and an attention mask `(2, length)`; the second row is padded."""
    mask = torch.ones(2, _LENGTH, dtype=torch.long)
    mask[1, _LENGTH - 3 :] = 0
    return torch.randint(0, _VOCABULARY, (2, _LENGTH)), mask


def _bert() -> Built:
    from transformers import BertConfig, BertModel

    return BertModel(BertConfig(vocab_size=_VOCABULARY, **_WIDTHS)), _tokens()


def _distilbert() -> Built:
    from transformers import DistilBertConfig, DistilBertModel

    config = DistilBertConfig(vocab_size=_VOCABULARY, dim=64, n_layers=2, n_heads=4, hidden_dim=128)
    return DistilBertModel(config), _tokens()


def _vit() -> Built:
    from transformers import ViTConfig, ViTModel

    return ViTModel(ViTConfig(image_size=32, patch_size=8, **_WIDTHS)), (torch.randn(2, 3, 32, 32),)


def _whisper_encoder() -> Built:
    from transformers import WhisperConfig
    from transformers.models.whisper.modeling_whisper import WhisperEncoder

    config = WhisperConfig(
        d_model=64, encoder_layers=2, encoder_attention_heads=4, encoder_ffn_dim=128, num_mel_bins=16,
        max_source_positions=20,
    )  # fmt: skip
    return WhisperEncoder(config), (torch.randn(2, 16, 40),)


def _wav2vec2() -> Built:
    from transformers import Wav2Vec2Config, Wav2Vec2Model

    config = Wav2Vec2Config(
        conv_dim=(32, 32), conv_stride=(5, 2), conv_kernel=(10, 3), num_feat_extract_layers=2,
        num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=4, **_WIDTHS,
    )  # fmt: skip
    return Wav2Vec2Model(config), (torch.randn(2, 400),)


def _clip_text() -> Built:
    from transformers import CLIPTextConfig, CLIPTextModel

    config = CLIPTextConfig(
        vocab_size=_VOCABULARY,
        max_position_embeddings=16,
        bos_token_id=198,
        eos_token_id=199,
        pad_token_id=1,
        **_WIDTHS,
    )
    return CLIPTextModel(config), _tokens()


def _clip_vision() -> Built:
    from transformers import CLIPVisionConfig, CLIPVisionModel

    return CLIPVisionModel(CLIPVisionConfig(image_size=32, patch_size=8, **_WIDTHS)), (torch.randn(2, 3, 32, 32),)


def _segformer() -> Built:
    from transformers import SegformerConfig, SegformerForSemanticSegmentation

    config = SegformerConfig(
        depths=[1, 1, 1, 1], hidden_sizes=[16, 32, 64, 64], decoder_hidden_size=64, num_attention_heads=[1, 2, 4, 4]
    )
    return SegformerForSemanticSegmentation(config), (torch.randn(2, 3, 64, 64),)


def _detr() -> Built:
    from transformers import DetrConfig, DetrForObjectDetection, ResNetConfig

    backbone = ResNetConfig(
        embedding_size=16, hidden_sizes=[32, 64], depths=[1, 1], layer_type="basic", out_features=["stage2"]
    )
    config = DetrConfig(
        use_timm_backbone=False, use_pretrained_backbone=False, backbone=None, backbone_config=backbone, d_model=64,
        encoder_layers=1, decoder_layers=1, encoder_attention_heads=4, decoder_attention_heads=4, encoder_ffn_dim=64,
        decoder_ffn_dim=64, num_queries=10,
    )  # fmt: skip
    return DetrForObjectDetection(config), (torch.randn(2, 3, 64, 64),)


def _mobilevit() -> Built:
    from transformers import MobileViTConfig, MobileViTForImageClassification

    config = MobileViTConfig(
        image_size=64, hidden_sizes=[32, 48, 64], neck_hidden_sizes=[16, 16, 32, 32, 48, 64, 128], num_attention_heads=4
    )
    return MobileViTForImageClassification(config), (torch.randn(2, 3, 64, 64),)


TRANSFORMERS: dict[str, Callable[[], Built]] = {
    "bert": _bert,
    "clip_text": _clip_text,
    "clip_vision": _clip_vision,
    "detr": _detr,
    "distilbert": _distilbert,
    "mobilevit": _mobilevit,
    "segformer": _segformer,
    "vit": _vit,
    "wav2vec2": _wav2vec2,
    "whisper_encoder": _whisper_encoder,
}


def settle_batch_norms(model: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    """Give every batch norm a scale near one and the statistics of what it reads.

    The package draws some of them like weights, from a normal with deviation 0.02, and a signal dies out on its way
    through such a network: its answers would be the same whatever goes in.
    """
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    if not norms:
        return
    for module in norms:
        nn.init.normal_(module.weight, 1.0, 0.2)
        module.momentum = 1.0
        module.train()
    with torch.no_grad():
        model(*inputs)
    for module in norms:
        module.eval()
