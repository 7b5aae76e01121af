"""Two processes train one model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import secateur as sc
from processes import run_together
from tune.models import perceptron, vectors

WORKER = Path(__file__).with_name("trains_together.py")


def test_two_processes_train_as_one_with_batches_twice_as_large(tmp_path: Path) -> None:
    first, second = (torch.load(file, weights_only=True) for file in run_together(WORKER, tmp_path, 2))
    x, y = vectors()
    settings = sc.FineTune(epochs=2, rate=0.1, weight_decay=0.0, average=0.5, batch_size=16)
    batches = [(x[start : start + 16], y[start : start + 16]) for start in (0, 16)]
    alone = settings(perceptron(), batches, metric=lambda model: float(model[0].weight.detach().sum()))
    for name, value in alone.model.state_dict().items():
        torch.testing.assert_close(first[name], value, rtol=1e-5, atol=1e-6)
    for name in [*alone.model.state_dict(), *(name for name in first if name.startswith("normed."))]:
        torch.testing.assert_close(second[name], first[name], rtol=0, atol=0)
    assert first["losses"].tolist() == pytest.approx([epoch.loss for epoch in alone.record.epochs])
    assert (int(first["processes"]), int(first["metrics"]), int(second["metrics"])) == (2, 3, 0)
    assert (tmp_path / "trains_together-0.checkpoints" / "checkpoint.safetensors").is_file()
    assert not (tmp_path / "trains_together-1.checkpoints").exists()
