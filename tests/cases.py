"""The small models that every law is stated over."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from networks import attention as at
from networks import constants as ct
from networks import convolutional as cv
from networks import recurrent as rc
from networks import scattering as sc
from networks import transforms as tf
from networks import whole as wh
from secateur.study import Study, study


@dataclass(frozen=True)
class Case:
    """A model, example inputs, and what is expected of its layers."""

    name: str
    build: Callable[[], nn.Module]
    example: Callable[[int], Any]
    """Inputs of a given batch size."""
    heads: bool = False
    """Whether whole heads or groups can go."""
    whole: str | None = None
    """Part of the reason why the channels around one operator stay."""

    recorded: bool = False
    """Whether torch.export does not take it, so that a graph of it holds for the sizes of the example alone."""

    def model(self) -> nn.Module:
        """The model in eval mode, with the same random weights each time and none of them constant."""
        torch.manual_seed(7)
        model = self.build().eval()
        return vary(model)

    def inputs(self, batch: int = 2) -> Any:
        """Example inputs, the same each time."""
        torch.manual_seed(11)
        return self.example(batch)

    def __str__(self) -> str:
        return self.name


def vary(model: nn.Module) -> nn.Module:
    """Give constant scales, shifts and running statistics values of their own, so that zeros and ones hide nothing."""
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            if tensor.is_floating_point() and tensor.numel() > 1 and bool((tensor == tensor.flatten()[0]).all()):
                tensor.add_(torch.rand_like(tensor) * 0.5 + 0.25)
    return model


def call(model: nn.Module, inputs: Any) -> Any:
    """Call a model on inputs as :func:`secateur.study.study` takes them."""
    if isinstance(inputs, Tensor):
        return model(inputs)
    if isinstance(inputs, dict):
        return model(**inputs)
    return model(*inputs)


@cache
def studied(case: Case) -> Study:
    """The study of a case; nothing that is done with it may change it."""
    return study(case.model(), case.inputs())


def image(*shape: int) -> Callable[[int], Tensor]:
    """Random inputs of a shape, the batch in front."""
    return lambda batch: torch.randn(batch, *shape)


def _named(batch: int) -> dict[str, Any]:
    return {"image": torch.randn(batch, 3, 8, 8), "scale": 0.5, "options": {"shift": torch.randn(batch, 3, 1, 1)}}


def _pair(batch: int) -> tuple[Tensor, ...]:
    return torch.randn(batch, 4, 10), torch.randn(batch, 6, 7), torch.randn(batch, 6) > -1


def _numbers(batch: int) -> Tensor:
    return torch.randint(0, 18, (batch, 7))


PIXELS, TOKENS, VECTORS = image(3, 8, 8), image(6, 10), image(5, 6)

CASES = [
    Case("residual", cv.Residual, PIXELS),
    Case("padded_shortcut", cv.PaddedShortcut, PIXELS),
    Case("dense_block", cv.DenseBlock, PIXELS),
    Case("inception", cv.Inception, PIXELS),
    Case("grouped", cv.Grouped, PIXELS, heads=True),
    Case("separable", cv.Separable, PIXELS),
    Case("decoder_1d", lambda: cv.Decoder(1), image(2, 8)),
    Case("decoder_2d", lambda: cv.Decoder(2), image(2, 8, 8)),
    Case("decoder_3d", lambda: cv.Decoder(3), image(2, 4, 4, 4)),
    Case("grouped_decoder", cv.GroupedDecoder, PIXELS, heads=True),
    Case("first_grouped_decoder", cv.FirstGroupedDecoder, image(4, 8, 8)),
    Case("second_order", cv.SecondOrder, PIXELS),
    Case("squeeze_excite", cv.SqueezeExcite, PIXELS),
    Case("neighbouring_channels", cv.NeighbouringChannels, PIXELS),
    Case("channel_shuffle", cv.ChannelShuffle, PIXELS),
    Case("shuffle_layer", cv.ShuffleLayer, PIXELS, heads=True),
    Case("indexed_channels", cv.IndexedChannels, PIXELS),
    Case("pixel_shuffle", cv.PixelShuffle, PIXELS),
    Case("flatten", cv.Flatten, PIXELS),
    Case("group_norm", cv.GroupNormed, PIXELS, heads=True),
    Case("instance_norm", cv.InstanceNormed, PIXELS),
    Case("weight_norm", cv.WeightNormed, PIXELS),
    Case("weight_norm_by_hooks", cv.WeightNormedByHooks, PIXELS),
    Case("spectral_norm", cv.SpectralNormed, VECTORS),
    Case("standardised", cv.Standardised, PIXELS),
    Case("prelu", cv.Sloped, PIXELS),
    Case("glu", cv.Gated, PIXELS),
    Case("layer_scale", cv.LayerScaled, PIXELS),
    Case("hierarchical", cv.Hierarchical, PIXELS),
    Case("in_place", cv.InPlace, PIXELS),
    Case("buffers", cv.Buffers, PIXELS),
    Case("reused", cv.Reused, PIXELS),
    Case("resampled", cv.Resampled, _named),
    Case("separate_qkv", at.Separate, TOKENS, heads=True),
    Case("fused_qkv", at.Fused, TOKENS, heads=True),
    Case("head_major_qkv", at.HeadMajor, TOKENS, heads=True),
    Case("chunked_qkv", at.Chunked, TOKENS, heads=True),
    Case("library_attention", at.Library, TOKENS, heads=True),
    Case("neighbouring_values", at.NeighbouringValues, TOKENS, heads=True),
    Case("einsum_attention", at.Einsum, TOKENS, heads=True),
    Case("sliding_windows", at.SlidingWindows, image(8, 10), heads=True),
    Case("written_windows", at.WrittenWindows, image(8, 10), heads=True, recorded=True),
    Case("rotary", at.Rotary, TOKENS, heads=True),
    Case("rotary_in_part", at.RotaryInPart, TOKENS, heads=True),
    Case("expanded_keys", at.ExpandedKeys, TOKENS, heads=True),
    Case("shared_values", at.SharedValues, TOKENS, heads=True),
    Case("relative_position", at.RelativePosition, image(4, 4, 10), heads=True),
    Case("talking_heads", at.TalkingHeads, TOKENS, heads=True),
    Case("channel_attention", at.ChannelAttention, TOKENS, heads=True),
    Case("linear_attention", at.LinearAttention, TOKENS, heads=True),
    Case("cross_attention", at.CrossAttention, _pair, heads=True),
    Case("pooling_token", at.PoolingToken, TOKENS, heads=True),
    Case("class_token", at.ClassToken, PIXELS, heads=True),
    Case("mixer", at.Mixer, TOKENS),
    Case("patch_merging", at.PatchMerging, PIXELS),
    Case("spatial_gating", at.SpatialGating, TOKENS),
    Case("language_model", at.LanguageModel, _numbers, heads=True),
    Case("recurrent", rc.Recurrent, VECTORS),
    Case("both_ways", rc.BothWays, VECTORS),
    Case("last_states", rc.LastStates, VECTORS),
    Case("translation", rc.Translation, VECTORS),
    Case("steps_with_memory", rc.LongSteps, VECTORS),
    Case("steps", rc.ShortSteps, VECTORS),
    Case("tokens", sc.Tokens, TOKENS),
    Case("positions", ct.Positions, TOKENS),
    Case("latent_attention", ct.LatentAttention, TOKENS, heads=True),
    Case("biased_by_distance", ct.BiasedByDistance, TOKENS, heads=True),
    Case("biased_by_count", ct.BiasedByCount, TOKENS, heads=True),
    Case("padded_to_even", ct.PaddedToEven, TOKENS),
    Case("stretched_positions", ct.StretchedPositions, TOKENS),
    Case("aligned_features", ct.AlignedFeatures, TOKENS, heads=True),
    Case("splines", ct.Splines, VECTORS),
    Case("capsules", ct.Capsules, PIXELS, heads=True),
    Case("convolutional_memory", ct.ConvolutionalMemory, PIXELS),
    Case("blurred", ct.Blurred, PIXELS),
    Case("coordinate_attention", ct.CoordinateAttention, PIXELS),
    Case("experts", ct.Experts, TOKENS),
    Case("mapped", tf.Mapped, VECTORS, recorded=True),
    Case("forces", tf.Forces, VECTORS, recorded=True),
    Case("unknown_operator", wh.Unknown, VECTORS, whole="secateur_tests.mixed"),
    Case("rolled", wh.Rolled, VECTORS),
]
