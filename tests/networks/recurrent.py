"""Small networks with recurrent layers."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Recurrent(nn.Module):
    """An LSTM between linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.recurrent, self.head = nn.Linear(6, 10), nn.LSTM(10, 8, batch_first=True), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.recurrent(torch.relu(self.first(x)))[0])


class BothWays(nn.Module):
    """A GRU of two layers in both directions, and its last states."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.recurrent = nn.Linear(6, 10), nn.GRU(10, 6, num_layers=2, bidirectional=True)
        self.head, self.last = nn.Linear(12, 4), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x, states = self.recurrent(torch.relu(self.first(x)).transpose(0, 1))
        return self.head(x).transpose(0, 1) + self.last(states).sum(0)[:, None]


class Translation(nn.Module):
    """One LSTM starts from the states of another."""

    def __init__(self) -> None:
        super().__init__()
        self.reader, self.writer, self.head = nn.LSTM(6, 8, batch_first=True), nn.LSTM(6, 8, batch_first=True), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        _, states = self.reader(x)
        return self.head(self.writer(x.flip(1), states)[0])


class LastStates(nn.Module):
    """The states of the upper layer at both ends, by their place in the stack of states."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.LSTM(6, 8, num_layers=2, batch_first=True, bidirectional=True)
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        start = x.new_zeros(4, x.shape[0], 8)
        _, (states, _) = self.rnn(x, (start, start))
        return self.head(torch.cat([states[-2], states[-1]], -1))


class Steps(nn.Module):
    """Cells called step by step, from zeros as wide as they are."""

    def __init__(self, cell: type[nn.LSTMCell | nn.GRUCell]) -> None:
        super().__init__()
        self.first, self.cell, self.head = nn.Linear(6, 10), cell(10, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(x))
        state = x.new_zeros(x.shape[0], self.cell.hidden_size)
        pair = (state, state)
        for step in x.unbind(1):
            if isinstance(self.cell, nn.LSTMCell):
                pair = self.cell(step, pair)
                state = pair[0]
            else:
                state = self.cell(step, state)
        return self.head(state)


class LongSteps(Steps):
    """With a cell that has a memory."""

    def __init__(self) -> None:
        super().__init__(nn.LSTMCell)


class ShortSteps(Steps):
    """With a cell that has none."""

    def __init__(self) -> None:
        super().__init__(nn.GRUCell)
