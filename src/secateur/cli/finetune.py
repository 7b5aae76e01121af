"""The command that trains a saved model further."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any, Literal

import torch
import typer
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils.data import DataLoader, Dataset

from secateur.cli.bundles import Settings, option
from secateur.cli.command import Answer
from secateur.cli.destination import Config, Destination
from secateur.cli.progress import working
from secateur.cli.results import saved as saved_answer
from secateur.cli.saved_report import SavedReport, report_content
from secateur.cli.source import Opened, Remembered
from secateur.errors import ModelError, ProofError, UsageError
from secateur.export import Directory, load, proven_directory, read_directory
from secateur.measure import compare_outputs
from secateur.measure.evaluation import evaluating
from secateur.result import Result
from secateur.rewrite import Cut
from secateur.tune import Distillation, FineTune, MeanLoss, Top1, default_loss
from secateur.tune.data import function_of, opened
from secateur.tune.images import Augment, Images
from secateur.tune.losses import target_of

AGREE = 1e-5
"""How far the outputs of files that were read back may be from those of the trained model, relative to them."""
DENSE = "dense"


@dataclass(frozen=True, kw_only=True)
class Lessons:
    """Data."""

    data: str = field(metadata=option(metavar="DATA"))
    """A folder of images with one subfolder for each class, or package.module:function that returns a loader or a dataset."""
    validation: str | None = field(default=None, metadata=option(metavar="DATA"))
    """Data to measure on, in the same forms; of a folder a share is held out where they are not given."""
    holdout: float = 0.1
    """The share of a folder's images that is held out."""
    augment: Augment = "crop"
    """What is done to a folder's images for training: nothing, mirroring, or random parts and mirroring."""
    workers: int = 0
    """Processes that load data."""
    metric: str | None = field(default=None, metadata=option(metavar="METRIC"))
    """top1, loss, or package.module:function of the model; by default top1 for labels, else loss."""
    best: Literal["highest", "lowest"] | None = None
    """Which value of the metric is the best; by default the lowest loss, and the highest of all others."""
    loss: str | None = field(default=None, metadata=option(metavar="MODULE:FUNCTION"))
    """A function of outputs and batch; by default cross entropy, squared error, or the loss that the model returns."""
    teacher: str | None = field(default=None, metadata=option(metavar="MODEL"))
    """Learn from a model too: dense for the one that the directory was made from, or any MODEL."""
    resume: bool = False
    """Go on from the checkpoint, if there is one."""

    def loaders(self, batch_size: int, seed: int, inputs: Any) -> tuple[Iterable[Any], Iterable[Any] | None]:
        """Training and validation data as loaders."""
        training, validation = self._data(seed, inputs)
        return self._loader(training, batch_size, shuffle=True), validation and self._loader(validation, batch_size, shuffle=False)

    def _data(self, seed: int, inputs: Any) -> tuple[Any, Any]:
        folder = Path(self.data)
        if not folder.is_dir():
            return function_of(self.data, "Training data")(), self._validation(inputs)
        images = Images.of(folder, _image_shape(inputs), self.augment)
        return (images, self._validation(inputs)) if self.validation or not self.holdout else images.split(self.holdout, seed)

    def _validation(self, inputs: Any) -> Any:
        if self.validation is None:
            return None
        folder = Path(self.validation)
        return Images.of(folder, _image_shape(inputs)) if folder.is_dir() else function_of(self.validation, "Validation data")()

    def _loader(self, data: Any, batch_size: int, *, shuffle: bool) -> Iterable[Any]:
        if isinstance(data, Dataset):
            return DataLoader(data, batch_size=batch_size, shuffle=shuffle, num_workers=self.workers)
        return opened(data, batch_size=batch_size, shuffle=shuffle)

    def measure(self, validation: Iterable[Any] | None) -> Any:
        """What is measured, with its ``name`` and which value is the ``best``, where there are data for it."""
        if self.metric not in (None, "top1", "loss"):
            return _Named(function_of(self.metric, "The metric"), self.metric.partition(":")[2])
        if validation is None:
            if self.metric is not None:
                raise UsageError(f"--metric {self.metric} needs data to measure on: --validation.")
            return None
        first = target_of(next(iter(validation), None))
        labelled = first is not None and not first.is_floating_point() and self.loss is None
        return Top1(validation) if self.metric == "top1" or (self.metric is None and labelled) else MeanLoss(validation, self.function)

    @property
    def function(self) -> Callable[[Any, Any], Tensor]:
        """The loss."""
        return default_loss if self.loss is None else function_of(self.loss, "The loss")


@dataclass(frozen=True)
class _Named:
    """A function of the user's as a metric."""

    function: Callable[[nn.Module], float]
    name: str
    best = None

    def __call__(self, model: nn.Module) -> float:
        return self.function(model)


Training = Annotated[FineTune, Settings(FineTune, frozenset({"distillation", "seed", "best"}), "Training")]
Teaching = Annotated[Distillation, Settings(Distillation, title="Distillation, with --teacher")]


def finetune(
    source: Remembered,
    lessons: Lessons,
    training: Training,
    distillation: Teaching,
    destination: Destination,
    config: Config,
) -> Answer:
    """Train a saved model further, prove that its structure is still the plan's, and save it anew.

    Example: secateur finetune out --data photos/ --teacher dense --epochs 10 --out tuned
    """
    destination.directory()
    saved = read_directory(source.directory)
    before = SavedReport.of(report_content(source.directory))
    model = source.open(saved)
    small = load(source.directory, into=model.model)
    loader, validation = lessons.loaders(training.batch_size, source.seed, saved.examples())
    metric = lessons.measure(validation)
    wanted: Any = lessons.best or getattr(metric, "best", None) or "highest"
    settings = replace(training, distillation=distillation, seed=source.seed, best=wanted)
    teacher = _teacher(lessons.teacher, source, model)
    cut = _cut(saved, model) if teacher is not None and distillation.feature_weight else None
    tuned = settings(small, loader, teacher=teacher, cut=cut, metric=metric, loss=lessons.function, resume=lessons.resume)
    _leave_to_the_first()
    name = getattr(metric, "name", "metric")
    names = getattr(model.model, "file_names", None)
    result = tuned.into(replace(_result(small, saved, before), file_names=names), metric=name)
    if metric is not None and isinstance(model.model, nn.Module):
        with evaluating([model.model]):
            result = replace(result, metrics={**result.metrics, f"{name} of the dense model": float(metric(model.model))})
    answer = saved_answer(_proven(result, model), destination)
    return replace(answer, data={**answer.data, "training": tuned.record.to_json()})


def _leave_to_the_first() -> None:
    """End all processes but the first, which does the rest alone."""
    if torch.distributed.is_initialized():
        rank = torch.distributed.get_rank()
        torch.distributed.destroy_process_group()
        if rank:
            raise typer.Exit(0)


def _teacher(spec: str | None, source: Remembered, model: Opened) -> nn.Module | None:
    if spec is None:
        return None
    found = model.model if spec == DENSE else source.opened(spec, model.inputs).model
    if not isinstance(found, nn.Module):
        found = found.module()
    return found


def _cut(saved: Directory, model: Opened) -> Cut:
    """What was removed of the dense model itself: by the first run of edits, nothing if these are factors."""
    return model.study().cut(replace(saved.plan, edits=next(iter(saved.plan.stages), ())))


def _image_shape(inputs: Any) -> tuple[int, int, int]:
    found = next((leaf for leaf in pytree.tree_leaves(inputs) if isinstance(leaf, Tensor)), None)
    if found is None or found.ndim != 4 or found.shape[1] not in (1, 3):
        raise ModelError("Images from a folder need a model that takes n x 3 x height x width (or n x 1). Give --data module:function.")
    channels, height, width = found.shape[1:]
    return channels, height, width


def _result(small: nn.Module, saved: Directory, before: SavedReport) -> Result:
    """The saved result, as it was before training."""
    args, kwargs = saved.examples()
    return Result(
        model=small,
        kind="module" if saved.kind == "module" else "graph",
        plan=saved.plan,
        proof=before.proof,
        before=before.before,
        after=before.after,
        layers=before.layers,
        args=args,
        kwargs=kwargs,
        stages=saved.stages,
        factorized=before.factorized,
        notes=before.notes,
        recovered=saved.recovered,
        latency=before.latency,
        metrics=before.metrics,
    )


def _proven(result: Result, model: Opened) -> Result:
    """The result with a proof of what its files hold: the plan's structure, and the trained model's outputs."""
    with working("Proving"), TemporaryDirectory() as folder:
        path = result.save(Path(folder) / "out", onnx=False)
        again = load(path, into=model.model)
        apart = _apart(result, again)
        if not apart <= AGREE:
            raise ProofError(f"Files that were read back give other outputs than the trained model: {apart:.1e} apart.", error=apart)
        found = proven_directory(path, model.model, inputs=(result.args, dict(result.kwargs)), recovered=True)
    read = f"files that were read back agree with the trained model to {apart:.0e}"
    note = f"after fine-tuning the structure was proven anew, with the dense weights; {read}"
    return replace(result, proof=found.proof, notes=(*result.notes, note))


def _apart(result: Result, again: nn.Module) -> float:
    """The relative difference of the outputs of two models on the example inputs."""
    args, kwargs = result.args, result.kwargs
    with evaluating([result.model, again]):
        return compare_outputs(lambda: result.model(*args, **kwargs), lambda: again(*args, **kwargs), [()]).relative_l2
