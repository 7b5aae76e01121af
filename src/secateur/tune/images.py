"""Folders of images with one subfolder for each class."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.data import Dataset

from secateur.errors import FileError
from secateur.score.batches import IMAGE_SUFFIXES, read_image

Augment = Literal["none", "flip", "crop"]


@dataclass(frozen=True)
class Images(Dataset[tuple[Tensor, int]]):
    """Images with the number of their subfolder, in the order of names, as their label.

    They are scaled to [0, 1] and normalised by the mean and deviation customary for ImageNet, as calibration images are.
    """

    files: tuple[tuple[Path, int], ...]
    """Every file with its label."""
    shape: tuple[int, int, int]
    """Channels, height and width: those of the model's input."""
    augment: Augment = "none"
    """Mirror images at random, or also take a random part of each, from 35 % of its area up."""

    @classmethod
    def of(cls, folder: Path, shape: tuple[int, int, int], augment: Augment = "none") -> Images:
        """The images of a folder; :class:`FileError` if it has no subfolders with images."""
        classes = sorted(path for path in folder.iterdir() if path.is_dir())
        files = [
            (file, label) for label, path in enumerate(classes) for file in sorted(path.rglob("*")) if file.suffix.lower() in IMAGE_SUFFIXES
        ]
        if not files:
            raise FileError(f"{folder} holds no subfolders, one for each class, with images ({', '.join(IMAGE_SUFFIXES)}).")
        return cls(tuple(files), shape, augment)

    def split(self, share: float, seed: int) -> tuple[Images, Images]:
        """The images without a random share of them, and that share as it is, not augmented."""
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed)).tolist()
        count = round(share * len(self))
        kept, out = sorted(order[count:]), sorted(order[:count])
        picked = [tuple(self.files[place] for place in places) for places in (kept, out)]
        return replace(self, files=picked[0]), replace(self, files=picked[1], augment="none")

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, place: int) -> tuple[Tensor, int]:
        file, label = self.files[place]
        part = _random_part() if self.augment == "crop" else {}
        image = read_image(file, self.shape, **part)
        mirrored = self.augment != "none" and bool(torch.rand(()) < 0.5)
        return (image.flip(-1) if mirrored else image), label


def _random_part() -> dict[str, Any]:
    """A part of an image with 35 % of its area or more."""
    area, x, y = torch.rand(3).tolist()
    return {"side": (0.35 + 0.65 * area) ** 0.5, "place": (x, y)}
