"""Trains with checkpoints until it is killed in the tenth step: `python dies.py DIRECTORY`."""

from __future__ import annotations

import os
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import secateur as sc
from tune.models import Noisy, Normed

SETTINGS = sc.FineTune(epochs=3, optimizer="adamw", rate=0.02, batch_size=4, average=0.9)


def model_of() -> nn.Module:
    """The model that is trained."""
    torch.manual_seed(8)
    return Normed()


if __name__ == "__main__":
    calls = 0

    def loss(outputs: Tensor, batch: Any) -> Tensor:
        """The usual loss, nine times."""
        global calls
        calls += 1
        if calls > 9:
            os.kill(os.getpid(), signal.SIGKILL)
        return nn.functional.cross_entropy(outputs, batch[1])

    torch.set_num_threads(1)
    replace(SETTINGS, checkpoints=Path(sys.argv[1]), checkpoint_every=2)(model_of(), Noisy(), loss=loss)
