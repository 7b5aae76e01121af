"""The training loop: one run, which can be left and taken up again at any step."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from secateur.errors import ModelError, TrainingError, UsageError
from secateur.measure.evaluation import evaluating
from secateur.score.progress import with_progress
from secateur.tune.average import Average, State, copied_state, put_state, tensors_of
from secateur.tune.checkpoint import Checkpoint
from secateur.tune.data import Batches
from secateur.tune.distillation import Held
from secateur.tune.losses import Loss, is_regression, model_inputs
from secateur.tune.process import reseed, shared_value
from secateur.tune.record import Epoch, Record
from secateur.tune.schedule import rate_factor

if TYPE_CHECKING:
    from secateur.tune.finetune import FineTune

LOOK_EVERY = 20
"""Batches between two looks at whether the loss is still a number."""
Metric = Callable[[nn.Module], float]


@dataclass(frozen=True, eq=False)
class Task:
    """What is trained on what, and for what."""

    model: nn.Module
    """Trained in place."""
    batches: Batches
    loss: Loss
    metric: Metric | None
    teaching: Held | None


class Run:
    """The state of a run between two steps, and what takes it further."""

    def __init__(self, settings: FineTune, task: Task, accelerator: Any) -> None:
        self.settings, self.task, self.accelerator = settings, task, accelerator
        self.raw = optimizer_for(task.model, settings)
        self.wrapped, self.optimizer = accelerator.prepare(task.model, self.raw)
        self.average = None if settings.average is None else Average(task.model, settings.average)
        self.epochs: list[Epoch] = []
        self.done = 0
        """Batches of the current epoch that are done."""
        self.steps = 0
        self.sums: dict[str, Tensor] = {}
        self.before: float | None = None
        self.best_epoch: int | None = None
        self.best: float | None = None
        self.best_state: State | None = None
        self._pending = 0

    def run(self) -> Record:
        """Train to the end, and leave the weights that are to be returned in the model."""
        if self.task.metric is not None and self.before is None:
            self.before = self._measured()
            self._compare(0, self.before)
        while len(self.epochs) < self.settings.epochs and not self._patience_is_over():
            self._epoch(len(self.epochs))
        self._settle()
        return self.record()

    def record(self) -> Record:
        """What has happened so far."""
        teaching = self.task.teaching
        return Record(
            settings=f"FineTune({self.settings.comparable()})",
            epochs=tuple(self.epochs),
            metric_before=self.before,
            best_epoch=self.best_epoch,
            steps=self.steps,
            stopped_early=len(self.epochs) < self.settings.epochs,
            processes=self.accelerator.num_processes,
            distilled=teaching is not None,
            features=() if teaching is None else tuple(f.name for f in teaching.features.found),
        )

    def _epoch(self, number: int) -> None:
        training_mode(self.task.model)
        for batch in self._shown(number):
            self._batch(batch, number)
            if self._is_due():
                self.save()
        if self._pending:
            self._step(number)
        self._close(number)

    def _shown(self, number: int) -> Iterator[Any]:
        batches, total = self.task.batches.epoch(number, self.done), self.task.batches.count
        if not self.accelerator.is_main_process:
            return batches
        left = None if total is None else total - self.done
        return with_progress(batches, f"Fine-tuning, epoch {number + 1} of {self.settings.epochs}", left)

    def _batch(self, batch: Any, number: int) -> None:
        """Forward and backward on one batch, and a step where enough of them have been taken."""
        settings, total = self.settings, self.task.batches.count
        closes = self._pending + 1 == settings.accumulate or self.done + 1 == total
        held: AbstractContextManager[Any] = nullcontext() if closes or total is None else self.accelerator.no_sync(self.wrapped)
        with held:
            loss = self._loss(batch)
            self.accelerator.backward(loss / settings.accumulate)
        self.done += 1
        self._pending += 1
        if closes:
            self._step(number)
        if self.done % LOOK_EVERY == 0 or loss.device.type == "cpu":
            self._check(number)

    def _loss(self, batch: Any) -> Tensor:
        args, kwargs = model_inputs(batch, self.task.model)
        outputs = self.wrapped(*args, **kwargs)
        teaching = self.task.teaching
        with self.accelerator.autocast():
            if teaching is None:
                loss = self.task.loss(outputs, batch)
                parts = {}
            else:
                teaching.regression = is_regression(batch)
                label = self.task.loss(outputs, batch) if teaching.settings.label_weight else None
                loss = teaching(label, outputs, *args, **kwargs)
                parts = teaching.parts
        if loss.dim() or not loss.requires_grad:
            raise ModelError(f"The loss is of the shape {tuple(loss.shape)} and must be one number that depends on the weights.")
        for name, part in {"loss": loss.detach(), **parts}.items():
            precise = part.float() if part.device.type == "mps" else part.double()
            self.sums[name] = self.sums.get(name, torch.zeros_like(precise)) + precise
        return loss

    def _step(self, number: int) -> None:
        """One step of the optimizer, at the rate that belongs to the middle of the last batch."""
        rate = self.settings.rate * self._factor(number)
        for group in self.raw.param_groups:
            group["lr"] = rate
        if self.settings.clip is not None:
            self.accelerator.clip_grad_norm_(self.task.model.parameters(), self.settings.clip)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.steps += 1
        self._pending = 0
        if self.average is not None:
            self.average.update(self.task.model, self.steps)

    def _factor(self, number: int) -> float:
        settings, total = self.settings, self.task.batches.count
        place = number + ((self.done - 0.5) / total if total else 0.5)
        return rate_factor(place, epochs=settings.epochs, warmup=settings.warmup, shape=settings.schedule, final=settings.final_rate)

    def _check(self, number: int) -> None:
        if not bool(torch.isfinite(self.sums["loss"])):
            raise TrainingError(
                f"The loss is no longer a number after {self.done} batches of epoch {number + 1}. Lower the rate, clip gradients "
                "(clip=1.0), warm up longer, or train without mixed precision."
            )

    def _close(self, number: int) -> None:
        """Record an epoch, and measure the model behind it."""
        if not self.done:
            raise UsageError("The training data hold no batches. With several processes there must be one for each.")
        self._check(number)
        names = sorted(self.sums)
        means = self.accelerator.reduce(torch.stack([self.sums[name] for name in names]) / self.done, "mean").tolist()
        parts = dict(zip(names, means, strict=True))
        metric = None if self.task.metric is None else self._measured()
        rate = float(self.raw.param_groups[0]["lr"])
        self.epochs.append(Epoch(number + 1, parts.pop("loss"), parts, rate, metric))
        self.done, self.sums = 0, {}
        if metric is not None:
            self._compare(number + 1, metric)
        if self.settings.checkpoints is not None:
            self.save()

    def _measured(self) -> float:
        """The metric of the weights as they would be returned now, taken by the main process."""
        model, metric, now = self.task.model, self.task.metric, None
        assert metric is not None
        value = math.nan
        if self.accelerator.is_main_process:
            if self.average is not None:
                now = copied_state(model)
                put_state(self.average.state, model)
            reseed(self.settings.seed, "metric")
            with evaluating([model]):
                value = float(metric(model))
            if now is not None:
                put_state(now, model)
        return shared_value(value, self.accelerator)

    def _compare(self, epoch: int, value: float) -> None:
        sign = 1 if self.settings.best == "highest" else -1
        if self.best is None or sign * value > sign * self.best or math.isnan(self.best):
            self.best, self.best_epoch = value, epoch
            self.best_state = (
                copied_state(self.task.model) if self.average is None else {n: t.clone() for n, t in self.average.state.items()}
            )

    def _patience_is_over(self) -> bool:
        patience = self.settings.patience
        return patience is not None and self.best_epoch is not None and len(self.epochs) - self.best_epoch >= patience

    def _settle(self) -> None:
        if self.best_state is not None:
            put_state(self.best_state, self.task.model)
        elif self.average is not None:
            put_state(self.average.state, self.task.model)

    def _is_due(self) -> bool:
        every = self.settings.checkpoint_every
        at_step = not self._pending and every is not None and self.steps % every == 0
        return self.settings.checkpoints is not None and at_step and self.done != self.task.batches.count

    def save(self) -> None:
        """Write a checkpoint, from the main process."""
        folder = self.settings.checkpoints
        assert folder is not None
        self._check_sums()
        if self.accelerator.is_main_process:
            self._checkpoint().write(Path(folder))
        self.accelerator.wait_for_everyone()

    def _check_sums(self) -> None:
        if "loss" in self.sums:
            self._check(len(self.epochs))

    def _checkpoint(self) -> Checkpoint:
        scaler = self.accelerator.scaler
        told = {
            "settings": self.settings.comparable(),
            "processes": self.accelerator.num_processes,
            "epochs": [asdict(epoch) for epoch in self.epochs],
            "done": self.done,
            "steps": self.steps,
            "sums": {name: float(value) for name, value in self.sums.items()},
            "before": self.before,
            "best": self.best,
            "best_epoch": self.best_epoch,
            "scaler": None if scaler is None else scaler.state_dict(),
        }
        states = {"model": dict(tensors_of(self.task.model))}
        if self.average is not None:
            states["average"] = self.average.state
        if self.best_state is not None:
            states["best"] = self.best_state
        return Checkpoint(told, states, self.raw.state_dict())

    def restore(self, saved: Checkpoint) -> None:
        """Go on from a checkpoint; :class:`UsageError` if it is one of another run."""
        told = saved.told
        if told["settings"] != self.settings.comparable():
            raise UsageError(f"The checkpoint is of a run with other settings: {told['settings']}. Resume with these, or start elsewhere.")
        if told["done"] and told["processes"] != self.accelerator.num_processes:
            raise UsageError(f"The checkpoint lies within an epoch that {told['processes']} processes shared. Resume with as many.")
        self._restore_tensors(saved)
        self.epochs = [Epoch(**epoch) for epoch in told["epochs"]]
        self.done, self.steps = told["done"], told["steps"]
        device = self.accelerator.device
        precision = torch.float32 if device.type == "mps" else torch.float64
        self.sums = {name: torch.tensor(value, dtype=precision, device=device) for name, value in told["sums"].items()}
        self.before, self.best, self.best_epoch = told["before"], told["best"], told["best_epoch"]
        if told["scaler"] and self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(told["scaler"])

    def _restore_tensors(self, saved: Checkpoint) -> None:
        own = tensors_of(self.task.model)
        stored = saved.states["model"]
        if {n: t.shape for n, t in own.items()} != {n: t.shape for n, t in stored.items()}:
            raise UsageError("The checkpoint is of another model: names or shapes of its tensors differ from this one's.")
        put_state(stored, self.task.model)
        saved.into_optimizer(self.raw)
        device = self.accelerator.device
        if self.average is not None:
            self.average.state = {name: value.to(device) for name, value in saved.states["average"].items()}
        if "best" in saved.states:
            self.best_state = {name: value.to(device) for name, value in saved.states["best"].items()}


def optimizer_for(model: nn.Module, settings: FineTune) -> torch.optim.Optimizer:
    """The optimizer of all trainable parameters; weight decay is for those of two or more dimensions."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not trained:
        raise UsageError(f"No parameter of {type(model).__name__} is trainable: requires_grad is off for all of them.")
    groups = [
        {"params": [p for p in trained if p.dim() > 1], "weight_decay": settings.weight_decay},
        {"params": [p for p in trained if p.dim() <= 1], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if settings.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=settings.rate)
    return torch.optim.SGD(groups, lr=settings.rate, momentum=settings.momentum, nesterov=settings.momentum > 0)


def training_mode(model: nn.Module) -> None:
    """Switch a model to training, but for batch norms whose scale and shift are frozen: their statistics stay too."""
    model.train()
    for module in model.modules():
        own = list(module.parameters(recurse=False))
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and own and not any(p.requires_grad for p in own):
            module.eval()
