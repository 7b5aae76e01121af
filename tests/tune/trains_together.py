"""What each of two processes does that train one model: `python trains_together.py OUT`, with the variables that torchrun sets."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

import secateur as sc
from tune.models import Noisy, Normed, perceptron, vectors


def train(out: Path) -> None:
    """Two epochs on this process's share of the data, with a checkpoint; every process writes what it returns."""
    torch.manual_seed(0)
    x, y = vectors()
    data = torch.utils.data.TensorDataset(x, y)
    shown: list[int] = []

    def metric(model: torch.nn.Module) -> float:
        shown.append(1)
        return float(model[0].weight.detach().sum())

    folder = out.with_suffix(".checkpoints")
    settings = sc.FineTune(epochs=2, rate=0.1, weight_decay=0.0, checkpoints=folder, average=0.5)
    loader = torch.utils.data.DataLoader(data, batch_size=8)
    tuned = settings(perceptron(), loader, metric=metric)
    told = {"metrics": torch.tensor(float(len(shown))), "processes": torch.tensor(float(tuned.record.processes))}
    told["losses"] = torch.tensor([epoch.loss for epoch in tuned.record.epochs])
    normed = sc.FineTune(epochs=1, batch_size=4)(Normed(), Noisy()).model.state_dict()
    torch.save({**tuned.model.state_dict(), **told, **{f"normed.{name}": value for name, value in normed.items()}}, out)


if __name__ == "__main__":
    torch.set_num_threads(1)
    train(Path(sys.argv[1]))
