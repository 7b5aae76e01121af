"""The dense model as the teacher of the compressed one."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from secateur.errors import ModelError, SelectionError, UsageError
from secateur.rewrite import Cut
from secateur.tune.features import Feature, Features, match_features, watching
from secateur.tune.losses import scores_of

Match = Literal["auto", "kl", "mse"]
FLOOR = 1e-6
"""Mean squares of the teacher's features below this count as this: outputs that are nearly zero everywhere are no measure."""


@dataclass(frozen=True)
class Distillation:
    """Let a compressed model learn from the dense one: its logits, and its features at the channels that were kept.

        loss = label_weight L(labels) + logit_weight T^2 KL(softmax(Z / T) || softmax(z / T))
               + feature_weight mean_m ||f_m - P_m F_m||^2 / ||P_m F_m||^2

    with logits z, Z and outputs f_m, F_m of a module m in the compressed and in the dense model. P_m picks the channels that the
    plan kept, so that widths agree without a projection to be learned.

    Hinton, Vinyals, Dean, 2015; Romero et al., FitNets, ICLR 2015.

    Example:
        >>> import torch, secateur as sc
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
        >>> x, y = torch.randn(16, 4), torch.randint(0, 3, (16,))
        >>> study = sc.study(model, x)
        >>> plan = study.plan(ratio=0.5)
        >>> student = sc.apply(study, plan).model
        >>> optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
        >>> with sc.Distillation(feature_weight=1.0).between(student, model, study.cut(plan)) as distilled:
        ...     for _ in range(20):
        ...         outputs = student(x)
        ...         loss = distilled(torch.nn.functional.cross_entropy(outputs, y), outputs, x)
        ...         optimizer.zero_grad()
        ...         loss.backward()
        ...         optimizer.step()
        >>> sorted(distilled.parts)
        ['features', 'labels', 'logits']
    """

    label_weight: float = 0.5
    """Weight of the loss on labels; without a teacher it is 1."""
    logit_weight: float = 0.5
    """Weight of the distance of logits."""
    temperature: float = 4.0
    """Logits are divided by it; the more, the more small differences between unlikely classes count."""
    feature_weight: float = 0.0
    """Weight of the relative squared distance of features, averaged over modules."""
    features: tuple[str, ...] = ()
    """Modules whose outputs are compared, by name or glob; by default layers whose outputs are added to a residual stream, or all."""
    match: Match = "auto"
    """Compare outputs as distributions over classes (kl) or by squared distance (mse); auto does the latter for targets of real numbers."""

    def __post_init__(self) -> None:
        weights = (self.label_weight, self.logit_weight, self.feature_weight)
        if min(weights) < 0 or max(weights) == 0:
            raise UsageError(f"The weights of a distillation are {weights}; none may be negative, and one must be above zero.")
        if self.temperature <= 0:
            raise UsageError(f"The temperature is {self.temperature}; it must be above zero.")
        if self.features and not self.feature_weight:
            raise UsageError("Features are named, but their weight is 0. Give feature_weight too.")

    @contextmanager
    def between(self, student: nn.Module, teacher: nn.Module, cut: Cut | None = None, *, regression: bool = False) -> Iterator[Held]:
        """Watch both models; within the context, call what this yields for the loss of each batch.

        The teacher runs in evaluation mode and without gradients, as a copy that shares its tensors: it is not changed.

        Args:
            cut: what was removed of the teacher, ``study.cut(plan)``; needed for features of layers that got smaller.
            regression: with ``match="auto"``, compare outputs by squared distance.

        Raises:
            SelectionError: features are named that both models do not have.
        """
        features = match_features(student, teacher, cut, self.features) if self.feature_weight else Features()
        if self.feature_weight and not features.found:
            raise SelectionError("No module puts out the same in both models, so that there are no features to compare.")
        names = [feature.name for feature in features.found]
        copied = resting_copy(teacher, like=student)
        with watching(student, names, with_gradients=True) as theirs, watching(copied, names) as own:
            yield Held(self, copied, features, (theirs, own), regression=regression)


class Held:
    """A student and its teacher, watched: the loss of a batch with all its parts."""

    def __init__(
        self,
        settings: Distillation,
        teacher: nn.Module,
        features: Features,
        seen: tuple[dict[str, list[Any]], dict[str, list[Any]]],
        *,
        regression: bool,
    ) -> None:
        self.settings = settings
        self.features = features
        """The modules whose outputs are compared, and why others are not."""
        self.parts: dict[str, Tensor] = {}
        """The last batch's loss in parts, before weights: ``labels``, ``logits``, ``features``."""
        self.regression = regression
        """Whether targets are real numbers, so that outputs are compared by squared distance unless the settings say otherwise."""
        self._teacher = teacher
        self._seen = seen

    def __call__(self, label_loss: Tensor | None, outputs: Any, *args: Any, **kwargs: Any) -> Tensor:
        """The loss of a batch whose inputs were ``args`` and ``kwargs``, after the student has returned ``outputs`` for them.

        ``label_loss`` is ``None`` for batches without labels. Without gradients, as in an evaluation, features are left out.
        """
        self._seen[1].clear()
        with torch.no_grad():
            dense = self._teacher(*args, **kwargs)
        settings, parts = self.settings, {}
        if label_loss is not None:
            parts["labels"] = label_loss
        if settings.logit_weight:
            parts["logits"] = self._apart(outputs, dense)
        if settings.feature_weight and torch.is_grad_enabled():
            parts["features"] = self._features_apart()
        self._seen[0].clear()
        self.parts = {name: part.detach() for name, part in parts.items()}
        weights = {"labels": settings.label_weight, "logits": settings.logit_weight, "features": settings.feature_weight}
        weighed = [weights[name] * part.float() for name, part in parts.items()]
        return torch.stack(weighed).sum() if weighed else torch.zeros(())

    def _apart(self, outputs: Any, dense: Any) -> Tensor:
        (ours, dim), (theirs, _) = scores_of(outputs), scores_of(dense)
        if ours.shape != theirs.shape:
            raise ModelError(f"Teacher and student return different shapes: {tuple(theirs.shape)} and {tuple(ours.shape)}.")
        match, heat = self.settings.match, self.settings.temperature
        if match == "mse" or (match == "auto" and self.regression):
            return functional.mse_loss(ours.float(), theirs.float())
        ours, theirs = (functional.log_softmax(scores.float() / heat, dim) for scores in (ours, theirs))
        distance = functional.kl_div(ours, theirs, reduction="none", log_target=True)
        return heat**2 * distance.sum(dim).mean()

    def _features_apart(self) -> Tensor:
        student, teacher = self._seen
        return torch.stack([_relative(f, student.get(f.name, []), teacher.get(f.name, [])) for f in self.features.found]).mean()


def _relative(feature: Feature, ours: list[Any], theirs: list[Any]) -> Tensor:
    """Squared distance of one module's outputs, as a share of the square of the teacher's."""
    if len(ours) != 1 or len(theirs) != 1 or not all(isinstance(value, Tensor) for value in (*ours, *theirs)):
        counts = f"{len(ours)} times by the student, {len(theirs)} times by the teacher"
        raise ModelError(f"{feature.name} was called {counts}, or returned no tensor; features are of modules that each calls once.")
    own, dense = ours[0].float(), feature(theirs[0]).float()
    if own.shape != dense.shape:
        shapes = f"{tuple(own.shape)}, what is left of the teacher's has {tuple(dense.shape)}"
        raise ModelError(f"The output of {feature.name} has the shape {shapes}. Give the cut that was made: cut=study.cut(plan).")
    scale = dense.square().mean().clamp_min(FLOOR)
    distance: Tensor = (own - dense).square().mean() / scale
    return distance


def resting_copy(model: nn.Module, *, like: nn.Module) -> nn.Module:
    """A copy of a model in evaluation mode where another model is; its tensors are the same ones unless they have to be moved."""
    device = next((tensor.device for tensor in (*like.parameters(), *like.buffers())), torch.device("cpu"))
    tensors = [*model.parameters(), *model.buffers()]
    shared = {id(tensor): tensor for tensor in tensors} if all(tensor.device == device for tensor in tensors) else {}
    copied = copy.deepcopy(model, shared)
    for module in copied.modules():
        module.training = False
    return copied if shared else copied.to(device)
