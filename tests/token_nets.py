"""Small networks of token inputs: those whose vocabularies can be cut, and those where that is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.nets import Net

SIZE = 20  # ids, where nothing else is said
KEEP = (1, 3, 4, 7, 8, 11, 15)


def text(function: Callable[..., Any], size: int = SIZE, **parts: Any) -> nn.Module:
    """A table of 8 columns, what `function(m, *ids)` makes of it, and two layers behind the mean over positions."""
    torch.manual_seed(0)
    net = Net(
        lambda m, *ids: m.out(torch.relu(m.fc(function(m, *ids))).mean(1)),
        emb=nn.Embedding(size, 8, padding_idx=1),
        fc=nn.Linear(8, 16),
        out=nn.Linear(16, 3),
        **parts,
    )
    return net.double().eval()


def _reordered(m: Any, ids: Tensor) -> Tensor:
    first, second = ids.chunk(2, 1)
    moved: Tensor = m.emb(torch.cat([second, first.flip(1)], 1).long())
    return moved


def _with_positions(m: Any, ids: Tensor) -> Tensor:
    """As RoBERTa has them: positions count what is no padding."""
    mask = ids.ne(1).int()
    places = torch.cumsum(mask, 1) * mask + 1
    summed: Tensor = (m.emb(ids) + m.pos(places.long())) * mask.unsqueeze(-1)
    return summed


def _attended(m: Any, ids: Tensor) -> Tensor:
    pad = ids == 1
    attended: Tensor = m.layer(m.emb(ids), src_key_padding_mask=pad) * (~pad).unsqueeze(-1)
    return attended


def _last(m: Any, ids: Tensor) -> Tensor:
    """As CLIP has it: the place of the largest id."""
    picked: Tensor = m.emb(ids)[torch.arange(ids.shape[0]), ids.argmax(-1)]
    return picked.unsqueeze(1)


def _aliased() -> nn.Module:
    again = nn.Embedding(SIZE, 8)
    net = text(lambda m, a, b: m.emb(a) + m.again(b), again=again)
    again.weight = net.emb.weight  # type: ignore[union-attr, assignment]
    return net


# name -> (network, how many inputs, how many numbers of each id its tables hold)
GOOD: dict[str, tuple[Callable[[], nn.Module], int, int]] = {
    "embedding": (lambda: text(lambda m, ids: m.emb(ids)), 1, 8),
    "indexing": (lambda: text(lambda m, ids: m.emb.weight[ids]), 1, 8),
    "index_select": (
        lambda: text(lambda m, ids: m.emb.weight.index_select(0, ids.flatten()).view(-1, 6, 8)), 1, 8),
    "bag": (lambda: text(lambda m, ids: m.bag(ids).unsqueeze(1), bag=nn.EmbeddingBag(SIZE, 8, padding_idx=1)), 1, 8),
    "one more than the id": (
        lambda: text(lambda m, ids: m.emb(ids + 1) * (ids + 1 != 4).unsqueeze(-1), size=SIZE + 1), 1, 8),
    "scaled": (lambda: text(lambda m, ids: F.embedding(ids, m.emb.weight * 2)), 1, 8),
    "turned": (
        lambda: text(lambda m, ids: F.embedding(ids, m.w.t()), w=nn.Parameter(torch.randn(8, SIZE))), 1, 8),
    "low rank": (
        lambda: text(
            lambda m, ids: (m.a @ m.b)[ids], a=nn.Parameter(torch.randn(SIZE, 3)), b=nn.Parameter(torch.randn(3, 8))),
        1, 3),
    "reordered": (lambda: text(_reordered), 1, 8),
    "the largest id": (lambda: text(_last), 1, 8),
    "beside a one-hot code": (
        lambda: text(lambda m, ids: m.emb(ids) + F.one_hot(ids.long(), SIZE)[..., :8]), 1, 8),
    "positions": (lambda: text(_with_positions, pos=nn.Embedding(12, 8)), 1, 8),
    "two tables": (lambda: text(lambda m, ids: m.emb(ids) + m.other(ids), other=nn.Embedding(30, 8)), 1, 16),
    "a mask by a buffer": (
        lambda: text(lambda m, ids: m.emb(ids) * (ids != m.pad).unsqueeze(-1), pad=torch.tensor(1)), 1, 8),
    "attention": (
        lambda: text(_attended, layer=nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)), 1, 8),
    "lstm": (lambda: text(lambda m, ids: m.lstm(m.emb(ids))[0], lstm=nn.LSTM(8, 8, batch_first=True)), 1, 8),
    "a shared table": (lambda: text(lambda m, a, b: m.emb(a) - 2 * m.emb(b)), 2, 8),
    "a tied table": (_aliased, 2, 8),
    "two vocabularies": (lambda: text(lambda m, a, b: m.emb(a) + m.other(b), other=nn.Embedding(30, 8)), 2, 16),
}  # fmt: skip

# name -> (network, what is said of it)
REFUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "tied to the outputs": (
        lambda: Net(lambda m, ids: F.linear(m.emb(ids), m.emb.weight), emb=nn.Embedding(SIZE, 8)),
        r"the rows of 'emb.weight' must stay, as the table is also read by linear \(.*\.py:\d+\)"),
    "tied to a hidden layer": (
        lambda: text(lambda m, ids: m.up(torch.relu(m.emb(ids) @ m.emb.weight.t())), up=nn.Linear(SIZE, 8)),
        "the table is also read by (linear|matmul)"),
    "a mean of the table": (lambda: text(lambda m, ids: m.emb(ids) + m.emb.weight.mean()), "is also read by mean"),
    "centred": (lambda: text(lambda m, ids: (m.emb.weight - m.emb.weight.mean(0))[ids]), "is also read by mean"),
    "an offset a field": (
        lambda: text(lambda m, ids: m.emb(ids + m.offsets), size=200, offsets=torch.arange(0, 120, 20)),
        "another number is added to its ids at another place before a lookup"),
    "hashed": (lambda: text(lambda m, ids: m.emb(ids % 10)), "its ids reach a lookup by remainder, which changes them"),
    "masked": (lambda: text(lambda m, ids: m.emb(ids.masked_fill(ids == 4, 0))), "by masked_fill, which changes them"),
    "as floats": (lambda: text(lambda m, ids: m.emb(ids.float().long())), "by to, which changes them"),
    "renormed": (
        lambda: text(lambda m, ids: m.normed(ids), normed=nn.Embedding(SIZE, 8, max_norm=1.0)),
        "the table that they look up is made anew by embedding_renorm"),
    "a token of its own in front": (
        lambda: text(lambda m, ids: m.emb(torch.cat([torch.full((ids.shape[0], 1), 3), ids], 1))),
        "its ids are joined with other numbers before a lookup"),
    "padded by the network": (lambda: text(lambda m, ids: m.emb(F.pad(ids, (1, 0), value=3))), "joined with other"),
    "repeated by a sum": (
        lambda: text(lambda m, ids: m.emb(ids.unsqueeze(1) + torch.zeros(3, 1, dtype=torch.long)).mean(1)),
        "repeated by a sum"),
    "pairs of neighbours": (
        lambda: text(lambda m, ids: m.emb(ids) + m.emb(ids + 1), size=SIZE + 1), "stand for other rows elsewhere"),
    "one-hot alone": (
        lambda: text(lambda m, ids: F.one_hot(ids, SIZE).double() @ m.emb.weight), "no table of floats is looked up"),
}  # fmt: skip


def example(n_inputs: int, dtype: torch.dtype = torch.int64) -> tuple[Tensor, ...]:
    """Ids `(2, 6)` of each input."""
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randint(2, SIZE - 2, (2, 6), generator=generator).to(dtype) for _ in range(n_inputs))
