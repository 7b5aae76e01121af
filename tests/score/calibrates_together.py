"""What each of two processes finds that share calibration data: `python calibrates_together.py OUT`, started as torchrun does."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed

import secateur as sc
from cases import CASES
from recover.test_scaled import Normed

SIZE, BATCHES = 4, 16
CRITERIA = {
    "obs": sc.OBS(),
    "taylor": sc.Taylor(),
    "fisher": sc.Fisher(),
    "variance": sc.Variance(),
    "nuclear": sc.NuclearNorm(),
    "snp": sc.SNP(),
}
MODELS = ("residual", "separate_qkv")


def share(name: str, rank: int, count: int) -> tuple[sc.Study, list[Tensor]]:
    """A model's study, and the part of its calibration data that belongs to one of several processes."""
    case = next(case for case in CASES if case.name == name)
    study = sc.study(case.model(), case.inputs(SIZE))
    torch.manual_seed(3)
    batches = [case.example(SIZE) for _ in range(BATCHES)]
    return study, batches[rank * BATCHES // count : (rank + 1) * BATCHES // count]


def found(name: str, rank: int, count: int) -> Mapping[str, Any]:
    """Scores, plans and recovered weights of one model."""
    study, batches = share(name, rank, count)
    out: dict[str, Any] = {}
    for key, criterion in CRITERIA.items():
        out[f"{name}/{key}"] = dict(study.scores(criterion, data=batches, samples=None))
        out[f"{name}/{key}/plan"] = study.plan(criterion, ratio=0.5, data=batches, samples=None).to_json()
    plan = study.plan(ratio=0.5)
    for key, recovery in {"refit": sc.Refit(samples=None), "moved": sc.BatchNorm(samples=None)}.items():
        model = sc.apply(study, plan).model
        recovery(model, study.cut(plan), batches)
        out[f"{name}/{key}"] = dict(model.state_dict())
    factors = study.plan_decomposition(rank=2, data=batches, samples=None, accept_dearer=True)
    out[f"{name}/factors/plan"] = factors.to_json()
    out[f"{name}/factors"] = dict(sc.apply(study, factors, data=batches, samples=None).model.state_dict())
    return out


def behind_norms(rank: int, count: int) -> Mapping[str, Any]:
    """Recovered weights of heads whose queries and keys pass norms."""
    torch.manual_seed(4)
    model = Normed("plain").eval()
    batches = [torch.randn(SIZE, 6, 8) for _ in range(BATCHES)]
    study = sc.study(model, batches[0])
    plan = study.plan(ratio=0.5)
    small = sc.apply(study, plan).model
    sc.Attention(samples=None)(small, study.cut(plan), batches[rank * BATCHES // count : (rank + 1) * BATCHES // count])
    return {"normed/attention": dict(small.state_dict())}


if __name__ == "__main__":
    torch.set_num_threads(1)
    distributed.init_process_group("gloo")
    rank, count = distributed.get_rank(), distributed.get_world_size()
    values = {key: value for name in MODELS for key, value in found(name, rank, count).items()}
    torch.save({**values, **behind_norms(rank, count)}, Path(sys.argv[1]))
    distributed.destroy_process_group()
