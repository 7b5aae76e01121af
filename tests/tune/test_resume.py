"""Runs that are killed and taken up again end where they would have ended."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import secateur as sc
from secateur.tune.checkpoint import Checkpoint
from tune import dies
from tune.models import Noisy, Normed, perceptron, vectors

SETTINGS = sc.FineTune(epochs=3, optimizer="adamw", rate=0.02, batch_size=4, average=0.9, warmup=0.5, clip=1.0)


class Killed(Exception):
    """Stands for the end of the process."""


def dying_after(count: int) -> Any:
    """The usual loss, so many times."""
    calls = 0

    def loss(outputs: Tensor, batch: Any) -> Tensor:
        nonlocal calls
        calls += 1
        if calls > count:
            raise Killed
        return nn.functional.cross_entropy(outputs, batch[1])

    return loss


def model_of() -> nn.Module:
    torch.manual_seed(8)
    return Normed()


def score(model: nn.Module) -> float:
    return -float(model.conv.weight.detach().abs().sum())


@pytest.mark.parametrize(("every", "kill"), [(None, 9), (2, 9), (1, 3), (4, 13)])
def test_a_killed_run_ends_with_the_same_weights(tmp_path: Path, every: int | None, kill: int) -> None:
    whole = SETTINGS(model_of(), Noisy(), metric=score)
    settings = replace(SETTINGS, checkpoints=tmp_path, checkpoint_every=every)
    with pytest.raises(Killed):
        settings(model_of(), Noisy(), metric=score, loss=dying_after(kill))
    again = settings(model_of(), Noisy(), metric=score, resume=True)
    torch.testing.assert_close(dict(again.model.state_dict()), dict(whole.model.state_dict()), rtol=0, atol=0)
    assert again.record == whole.record


def test_a_process_that_was_killed_is_taken_up_by_another(tmp_path: Path) -> None:
    tests = Path(__file__).parents[1]
    path = os.pathsep.join([str(tests), str(tests.parent / "src"), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path, "ACCELERATE_USE_CPU": "true"}
    done = subprocess.run([sys.executable, str(tests / "tune" / "dies.py"), str(tmp_path)], env=environment, check=False)
    assert done.returncode == -signal.SIGKILL
    settings = replace(dies.SETTINGS, checkpoints=tmp_path, checkpoint_every=2)
    again = settings(dies.model_of(), Noisy(), resume=True)
    whole = dies.SETTINGS(dies.model_of(), Noisy())
    torch.testing.assert_close(dict(again.model.state_dict()), dict(whole.model.state_dict()), rtol=0, atol=0)
    assert again.record == whole.record


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_without_average_and_metric_too(tmp_path: Path, optimizer: Any) -> None:
    plain = sc.FineTune(epochs=2, batch_size=4, optimizer=optimizer)
    whole = plain(model_of(), Noisy())
    settings = replace(plain, checkpoints=tmp_path, checkpoint_every=3)
    with pytest.raises(Killed):
        settings(model_of(), Noisy(), loss=dying_after(8))
    again = settings(model_of(), Noisy(), resume=True)
    torch.testing.assert_close(dict(again.model.state_dict()), dict(whole.model.state_dict()), rtol=0, atol=0)


def test_resuming_what_is_finished_returns_it(tmp_path: Path) -> None:
    settings = replace(SETTINGS, checkpoints=tmp_path)
    done = settings(model_of(), Noisy(), metric=score)
    again = settings(model_of(), Noisy(), metric=score, loss=dying_after(0), resume=True)
    assert again.record == done.record
    torch.testing.assert_close(dict(again.model.state_dict()), dict(done.model.state_dict()), rtol=0, atol=0)


def test_resuming_without_a_checkpoint_starts(tmp_path: Path) -> None:
    assert len(replace(SETTINGS, checkpoints=tmp_path / "none")(model_of(), Noisy(), resume=True).record.epochs) == 3


def test_a_checkpoint_is_not_overwritten_by_accident(tmp_path: Path) -> None:
    settings = sc.FineTune(epochs=1, checkpoints=tmp_path)
    settings(perceptron(), [vectors()])
    with pytest.raises(sc.FileError, match="resume"):
        settings(perceptron(), [vectors()])


def test_a_checkpoint_of_another_run_is_refused(tmp_path: Path) -> None:
    settings = sc.FineTune(epochs=1, checkpoints=tmp_path)
    settings(perceptron(), [vectors()])
    with pytest.raises(sc.UsageError, match="other settings"):
        replace(settings, rate=0.5)(perceptron(), [vectors()], resume=True)
    with pytest.raises(sc.UsageError, match="another model"):
        settings(nn.Linear(4, 3), [vectors()], resume=True)


def test_a_damaged_checkpoint_is_refused(tmp_path: Path) -> None:
    settings = sc.FineTune(epochs=1, checkpoints=tmp_path)
    (tmp_path / "checkpoint.safetensors").write_bytes(b"nothing")
    with pytest.raises(sc.FileError, match="damaged"):
        settings(perceptron(), [vectors()], resume=True)


def test_a_kill_while_writing_leaves_the_checkpoint_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = sc.FineTune(epochs=2, checkpoints=tmp_path)
    moves = 0
    move = os.replace

    def dying(source: Any, target: Any) -> None:
        nonlocal moves
        moves += 1
        if moves == 2:
            raise Killed
        move(source, target)

    monkeypatch.setattr(os, "replace", dying)
    with pytest.raises(Killed):
        settings(perceptron(), [vectors()])
    monkeypatch.undo()
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.safetensors"]
    assert len(Checkpoint.read(tmp_path).told["epochs"]) == 1
    again = settings(perceptron(), [vectors()], resume=True)
    whole = sc.FineTune(epochs=2)(perceptron(), [vectors()])
    torch.testing.assert_close(dict(again.model.state_dict()), dict(whole.model.state_dict()), rtol=0, atol=0)
