"""One measurement holds what the parts say."""

from __future__ import annotations

import json

import torch
from torch import nn

from secateur.capture import record
from secateur.measure import measure


class Tied(nn.Module):
    """A batch norm between two layers that share one weight."""

    def __init__(self):
        super().__init__()
        self.first, self.norm, self.second = nn.Linear(4, 4, bias=False), nn.BatchNorm1d(4), nn.Linear(4, 4)
        self.second.weight = self.first.weight

    def forward(self, x):
        return self.second(self.norm(self.first(x)))


def test_a_measurement_by_hand():
    found = measure(record(Tied(), (torch.randn(3, 4),)))
    assert (found.parameters, found.buffers) == (16 + 8 + 4, 8 + 1)
    assert found.bytes == 4 * (28 + 8) + 8
    assert found.macs == sum(found.macs_by_layer.values()) == 2 * 3 * 16
    assert set(found.macs_by_layer) < {"first", "second"}  # one weight, under one of its names
    assert found.flops == 2 * found.macs
    assert found.not_counted == {"batch_norm": 1}
    assert found.peak_activation_bytes == 3 * 3 * 4 * 4
    assert json.loads(json.dumps(found.to_json()))["macs"] == found.macs
