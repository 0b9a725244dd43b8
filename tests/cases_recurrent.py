"""Recurrent networks, with the number of units that can be removed by hand count."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from tests.nets import Case, Net, parameter

SERIES = (3, 5)  # 3 steps of 5 features


def over_time(layer: nn.Module, width: int, **parts: Any) -> nn.Module:
    """A recurrent layer, the mean of its outputs over time, a linear layer."""
    return Net(lambda m, x: m.head(m.rnn(x)[0].mean(1)), rnn=layer, head=nn.Linear(width, 3), **parts)


def time_first(m: Any, x: Tensor) -> Tensor:
    return m.head(m.rnn(x.transpose(0, 1))[0].mean(0))


def last_states(m: Any, x: Tensor) -> Tensor:
    _, (hidden, cells) = m.rnn(x)
    return m.head(hidden[-1]) + m.other(cells[-2])


def all_states(m: Any, x: Tensor) -> Tensor:
    _, hidden = m.rnn(x)
    return m.head(hidden.transpose(0, 1).flatten(1))


def last_layer(m: Any, x: Tensor) -> Tensor:
    _, hidden = m.rnn(x)
    return m.head(torch.cat([*hidden[-2:]], 1))


def learned_states(m: Any, x: Tensor) -> Tensor:
    hidden, cells = (t.expand(-1, x.shape[0], -1) for t in (m.hidden, m.cells))
    return m.head(m.rnn(x, (hidden.contiguous(), cells.contiguous()))[0].mean(1))


def computed_state(m: Any, x: Tensor) -> Tensor:
    return m.head(m.rnn(x, m.start(x.mean(1)).tanh().unsqueeze(0))[0].mean(1))


def ones_state(m: Any, x: Tensor) -> Tensor:
    ones = x.new_ones(1, x.shape[0], 8)
    return m.head(m.rnn(x, (ones, ones))[0].mean(1))


def given_state(m: Any, x: Tensor, state: Tensor) -> Tensor:
    return m.head(m.rnn(x, state.unsqueeze(0))[0].mean(1))


def steps(m: Any, x: Tensor) -> Tensor:
    state = None
    for step in range(3):
        state = m.cell(x[:, step], state)
    return m.head(state[0] if isinstance(state, tuple) else state)


def conv_then_lstm(m: Any, x: Tensor) -> Tensor:
    return m.head(m.rnn(m.conv(x).relu().transpose(1, 2))[0][:, -1])


def encoder_decoder(m: Any, x: Tensor) -> Tensor:
    _, state = m.encoder(x)
    return m.head(m.decoder(x.flip(1), state)[0])


def stacked_states(m: Any, x: Tensor) -> Tensor:
    first, second = m.a(x[:, 0]).relu(), m.b(x[:, 0]).relu()
    states = torch.stack([first, second]), torch.cat([first[None], second[None]])
    return m.head(m.rnn(x, states)[0])


def writes_before(m: Any, x: Tensor) -> Tensor:
    y = m.first(x)
    y.transpose(1, 2)[:, 2:4].mul_(2.0)
    return m.head(m.rnn(y)[0].mean(1))


def twice(m: Any, x: Tensor) -> Tensor:
    return m.head(m.rnn(x)[0].mean(1) * m.rnn(x.flip(1))[0].mean(1))


def normed(m: Any, x: Tensor) -> Tensor:
    x = m.norm(m.rnn(x)[0])
    return m.head((m.score(x).softmax(1) * x).sum(1))


def residual_stack(m: Any, x: Tensor) -> Tensor:
    x = m.first(x)
    for layer in (m.a, m.b):
        x = x + layer(x)[0]
    return m.head(x)


def lstm(*sizes: int, **options: Any) -> nn.Module:
    return nn.LSTM(*sizes, batch_first=True, **options)


def gru(*sizes: int, **options: Any) -> nn.Module:
    return nn.GRU(*sizes, batch_first=True, **options)


CASES: dict[str, Case] = {
    "lstm": Case(lambda: over_time(lstm(5, 8), 8), (SERIES,), 8),
    "lstm inputs": Case(lambda: over_time(lstm(5, 8), 8), (SERIES,), 13, label_inputs=True),
    "lstm without bias": Case(lambda: over_time(lstm(5, 8, bias=False), 8), (SERIES,), 8),
    "lstm layers": Case(lambda: over_time(lstm(5, 8, 3, dropout=0.2), 8), (SERIES,), 24),
    "lstm two directions": Case(lambda: over_time(lstm(5, 8, bidirectional=True), 16), (SERIES,), 8),
    "lstm layers, two directions": Case(lambda: over_time(lstm(5, 8, 2, bidirectional=True), 16), (SERIES,), 16),
    "lstm projection": Case(lambda: over_time(lstm(5, 8, proj_size=3), 3), (SERIES,), 11),
    "lstm projection, layers, two directions": Case(
        lambda: over_time(lstm(5, 8, 2, bidirectional=True, proj_size=3), 6), (SERIES,), 22),
    "lstm, time first": Case(
        lambda: Net(time_first, rnn=nn.LSTM(5, 8, 2), head=nn.Linear(8, 3)), (SERIES,), 16),
    "lstm, last states": Case(
        lambda: Net(last_states, rnn=lstm(5, 8, 2), head=nn.Linear(8, 3), other=nn.Linear(8, 3)), (SERIES,), 16),
    "lstm, learned states": Case(
        lambda: Net(learned_states, rnn=lstm(5, 8), hidden=parameter(1, 1, 8), cells=parameter(1, 1, 8),
                    head=nn.Linear(8, 3)), (SERIES,), 8),
    "lstm, learned states, layers": Case(
        lambda: Net(learned_states, rnn=lstm(5, 8, 2), hidden=parameter(2, 1, 8), cells=parameter(2, 1, 8),
                    head=nn.Linear(8, 3)), (SERIES,), 8),  # one parameter holds the states of both layers
    "lstm, constant states": Case(lambda: Net(ones_state, rnn=lstm(5, 8), head=nn.Linear(8, 3)), (SERIES,), 8),
    "lstm after convolution": Case(
        lambda: Net(conv_then_lstm, conv=nn.Conv1d(5, 7, 3), rnn=lstm(7, 8), head=nn.Linear(8, 3)), ((5, 9),), 15),
    "lstm encoder and decoder": Case(
        lambda: Net(encoder_decoder, encoder=lstm(5, 8, 2), decoder=lstm(5, 8, 2), head=nn.Linear(8, 3)),
        (SERIES,), 16),
    "lstm after writes": Case(
        lambda: Net(writes_before, first=nn.Linear(5, 6), rnn=lstm(6, 8, 2), head=nn.Linear(8, 3)), (SERIES,), 22),
    "lstm twice": Case(lambda: Net(twice, rnn=lstm(5, 8, 2), head=nn.Linear(8, 3)), (SERIES,), 16),
    "lstm, norm and pooling": Case(
        lambda: Net(normed, rnn=lstm(5, 8, bidirectional=True), norm=nn.LayerNorm(16), score=nn.Linear(16, 1),
                    head=nn.Linear(16, 3)), (SERIES,), 8, exact=False),
    "lstm, weight norm": Case(
        lambda: over_time(nn.utils.parametrizations.weight_norm(lstm(5, 8), "weight_hh_l0"), 8), (SERIES,), 8),
    "lstm residual": Case(
        lambda: Net(residual_stack, first=nn.Linear(5, 8), a=lstm(8, 8), b=lstm(8, 8), head=nn.Linear(8, 3)),
        (SERIES,), 8),
    "lstm, states of each layer": Case(
        lambda: Net(stacked_states, rnn=lstm(5, 8, 2), a=nn.Linear(5, 8), b=nn.Linear(5, 8), head=nn.Linear(8, 3)),
        (SERIES,), 16),
    "gru": Case(lambda: over_time(gru(5, 8), 8), (SERIES,), 8),
    "gru layers, two directions": Case(
        lambda: over_time(gru(5, 8, 2, bidirectional=True, dropout=0.1), 16), (SERIES,), 16),
    "gru without bias": Case(lambda: over_time(gru(5, 8, 2, bias=False), 8), (SERIES,), 16),
    "gru, all states": Case(
        lambda: Net(all_states, rnn=gru(5, 8, 2), head=nn.Linear(16, 3)), (SERIES,), 8),  # joined layer by layer
    "gru, states of the last layer": Case(
        lambda: Net(last_layer, rnn=gru(5, 8, 2, bidirectional=True), head=nn.Linear(16, 3)), (SERIES,), 16),
    "gru, computed state": Case(
        lambda: Net(computed_state, rnn=gru(5, 8), start=nn.Linear(5, 8), head=nn.Linear(8, 3)), (SERIES,), 8),
    "gru, given state": Case(
        lambda: Net(given_state, rnn=gru(5, 8), head=nn.Linear(8, 3)), (SERIES, (8,)), 0),
    "gru, given state labelled": Case(
        lambda: Net(given_state, rnn=gru(5, 8), head=nn.Linear(8, 3)), (SERIES, (8,)), 13, label_inputs=True),
    "rnn": Case(lambda: over_time(nn.RNN(5, 8, batch_first=True), 8), (SERIES,), 8),
    "rnn relu, layers": Case(
        lambda: over_time(nn.RNN(5, 8, 2, "relu", batch_first=True, bidirectional=True), 16), (SERIES,), 16),
    "lstm cell": Case(lambda: Net(steps, cell=nn.LSTMCell(5, 8), head=nn.Linear(8, 3)), (SERIES,), 8),
    "gru cell": Case(lambda: Net(steps, cell=nn.GRUCell(5, 8), head=nn.Linear(8, 3)), (SERIES,), 8),
    "rnn cell": Case(lambda: Net(steps, cell=nn.RNNCell(5, 8, bias=False), head=nn.Linear(8, 3)), (SERIES,), 8),
    "rnn relu cell": Case(
        lambda: Net(steps, cell=nn.RNNCell(5, 8, nonlinearity="relu"), head=nn.Linear(8, 3)), (SERIES,), 8),
}  # fmt: skip
