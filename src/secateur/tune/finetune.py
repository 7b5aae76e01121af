"""Train a compressed model further, in one process or in many."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import torch
from torch import fx, nn

from secateur.capture.duplicate import duplicate
from secateur.errors import FileError, UsageError
from secateur.rewrite import Cut
from secateur.tune.checkpoint import FILE, Checkpoint
from secateur.tune.data import Batches, TrainingData, opened
from secateur.tune.distillation import Distillation, Held
from secateur.tune.loop import Metric, Run, Task
from secateur.tune.losses import Loss, default_loss
from secateur.tune.process import accelerated, own_random_numbers, share_tensors
from secateur.tune.record import Tuned
from secateur.tune.schedule import Shape

USUAL = Distillation()


@dataclass(frozen=True)
class FineTune:
    """Train a compressed model further, with the dense model as teacher where one is given, and return the trained copy.

    The run is one of Hugging Face Accelerate (extra ``train``): the same call works in one process on a CPU or a GPU and, started
    with ``torchrun`` or ``accelerate launch``, in many; gradients are then averaged, and the main process alone measures and writes.
    All random numbers depend on the seed and the place in the run, so that a run that was killed and resumed from its last
    checkpoint ends, on a CPU, with the very weights that it would have had.

    Batch norm trains as usual; parameters that are frozen (``requires_grad`` off) stay, and so do the statistics of a batch norm
    whose scale and shift are frozen. Neither the given model nor the teacher is changed.

    Example:
        >>> import torch, secateur as sc
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
        >>> x, y = torch.randn(64, 4), torch.randint(0, 3, (64,))
        >>> study = sc.study(model, x)
        >>> plan = study.plan(ratio=0.5)
        >>> tuned = sc.FineTune(epochs=2)(sc.apply(study, plan).model, (x, y), teacher=model, cut=study.cut(plan))
        >>> len(tuned.record.epochs), tuned.model[0].out_features
        (2, 4)
    """

    epochs: int = 10
    """Passes over the training data."""
    optimizer: Literal["sgd", "adamw"] = "sgd"
    """Stochastic gradients with Nesterov momentum, or Adam with decoupled weight decay."""
    rate: float = 0.01
    """The learning rate at its highest."""
    momentum: float = 0.9
    """Of stochastic gradients."""
    weight_decay: float = 1e-4
    """For weights of two or more dimensions; biases and norms have none."""
    schedule: Shape = "cosine"
    """How the rate falls after the warm-up: along a cosine, or not at all."""
    warmup: float = 0.0
    """Epochs in which the rate rises from 0, fractions included."""
    final_rate: float = 0.0
    """The share of the learning rate that a cosine ends at."""
    clip: float | None = None
    """Largest norm of the gradient; longer ones are scaled down."""
    precision: Literal["no", "fp16", "bf16"] | None = None
    """Mixed precision; by default what accelerate launch was told, else none."""
    accumulate: int = 1
    """Batches whose gradients make one step."""
    batch_size: int = 64
    """Samples of a batch in each process, where the data do not come in batches."""
    average: float | None = None
    """Decay of a moving average of the weights, such as 0.999, which is then measured and returned in their place."""
    patience: int | None = None
    """Stop after so many epochs without a better metric."""
    best: Literal["highest", "lowest"] = "highest"
    """Which metric is the best; the weights of that epoch are returned."""
    seed: int = 0
    """Starts all random numbers: order of samples, augmentation, dropout."""
    checkpoints: Path | None = None
    """Write a checkpoint into this directory behind every epoch."""
    checkpoint_every: int | None = None
    """Write one every so many steps too."""
    distillation: Distillation = USUAL
    """What is learned from the teacher, where one is given."""

    def __post_init__(self) -> None:
        for name in ("epochs", "accumulate", "batch_size", "patience", "checkpoint_every"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"{name} is {value}; it must be 1 or more.")
        for name, low, high in (("rate", 0.0, None), ("clip", 0.0, None), ("average", 0.0, 1.0)):
            value = getattr(self, name)
            if value is not None and (value <= low or (high is not None and value >= high)):
                raise UsageError(f"{name} is {value}; it must be above {low:g}{'' if high is None else f' and below {high:g}'}.")
        if not 0 <= self.warmup <= self.epochs or self.weight_decay < 0 or not 0 <= self.momentum < 1 or not 0 <= self.final_rate <= 1:
            raise UsageError(
                f"warmup is {self.warmup}, weight_decay {self.weight_decay}, momentum {self.momentum}, final_rate {self.final_rate}: the "
                "warm-up must lie within the epochs, the momentum in [0, 1), the last rate in [0, 1], and no decay is negative."
            )
        if self.checkpoint_every is not None and self.checkpoints is None:
            raise UsageError("checkpoint_every needs a directory: checkpoints=...")

    def __call__(
        self,
        model: nn.Module,
        data: TrainingData,
        *,
        teacher: nn.Module | None = None,
        cut: Cut | None = None,
        metric: Metric | None = None,
        loss: Loss | None = None,
        resume: bool = False,
    ) -> Tuned:
        """Train a copy of a model.

        Args:
            model: the compressed model: the user's own class, or a graph of layers.
            data: a data loader, a dataset, a tuple of tensors of all samples, a list of batches, a function that returns one of
                these, or ``"module:function"``. A batch is ``(inputs..., target)``, or a mapping of inputs by name with labels.
            teacher: the dense model, usually; see :class:`Distillation`.
            cut: ``study.cut(plan)``; needed for the features of layers that got smaller.
            metric: a function of the model, taken before training and behind every epoch in evaluation mode; the best weights are
                returned, which may be those that were given.
            loss: ``loss(outputs, batch)``; by default the loss in the outputs if they carry one, cross entropy for integer targets,
                squared error for others.
            resume: go on from the checkpoint, if there is one.

        Raises:
            MissingExtraError: accelerate is not installed.
            FileError: the directory holds a checkpoint, and the run is not to resume.
            TrainingError: the loss is no longer a number.
        """
        self._check(metric, resume)
        _check_trainable(model)
        with own_random_numbers(), accelerated(self.precision, self.seed) as accelerator:
            batches = Batches(opened(data, batch_size=self.batch_size), accelerator, self.seed)
            trained = duplicate(model).to(accelerator.device)
            with self._teaching(trained, teacher, cut) as teaching:
                run = Run(self, Task(trained, batches, loss or default_loss, metric, teaching), accelerator)
                if resume and self._file is not None and self._file.is_file():
                    run.restore(Checkpoint.read(self._file.parent))
                record = run.run()
            _unwrap(run, accelerator)
            share_tensors(chain(trained.parameters(), trained.buffers()), accelerator)
        return Tuned(_back(trained, model), record)

    def comparable(self) -> str:
        """The settings that a run must have in common with the one that it resumes."""
        same = replace(self, checkpoints=None, checkpoint_every=None)
        return ", ".join(f"{f.name}={getattr(same, f.name)!r}" for f in fields(same) if getattr(same, f.name) != f.default)

    @property
    def _file(self) -> Path | None:
        return None if self.checkpoints is None else Path(self.checkpoints) / FILE

    def _check(self, metric: Metric | None, resume: bool) -> None:
        if self.patience is not None and metric is None:
            raise UsageError("patience needs a metric that says which epoch is better: metric=...")
        if resume and self._file is None:
            raise UsageError("A run resumes from its checkpoints: checkpoints=...")
        if not resume and self._file is not None and self._file.exists():
            raise FileError(f"{self._file} exists already: resume from it, or choose another directory.")

    @contextmanager
    def _teaching(self, model: nn.Module, teacher: nn.Module | None, cut: Cut | None) -> Iterator[Held | None]:
        if teacher is None:
            yield None
            return
        with self.distillation.between(model, teacher, cut) as held:
            yield held


def _check_trainable(model: nn.Module) -> None:
    """Refuse the module of an exported program: its batch norm and dropout are those of inference, and so it has no ``train``."""
    if isinstance(model, fx.GraphModule) and "train" in vars(model):
        raise UsageError("The module of an exported program is for inference. Load it into its class: sc.load(path, into=build_model()).")


def _unwrap(run: Run, accelerator: Any) -> None:
    """Take off what accelerate wrapped around the model, its own forward included."""
    model = accelerator.unwrap_model(run.wrapped, keep_fp32_wrapper=False)
    for name in ("forward", "_original_forward", "_is_accelerate_prepared"):
        model.__dict__.pop(name, None)


def _back(trained: nn.Module, given: nn.Module) -> nn.Module:
    """The trained model where the given one is, with its modules in the same modes."""
    device = next((tensor.device for tensor in chain(given.parameters(), given.buffers())), torch.device("cpu"))
    for module, like in zip(trained.modules(), given.modules(), strict=True):
        module.training = like.training
    for parameter in trained.parameters():
        parameter.grad = None
    return trained.to(device)
