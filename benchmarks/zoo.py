"""Models to try things on, built by name with random weights.

They are named `torchvision:NAME`, `timm:NAME`, `hf:NAME`, `smp:NAME`, `diffusers:NAME` or `pyg:NAME` (PyTorch Geometric).

An image size may follow, as in `timm:levit_128s@224`. `build(name)` returns the model, its inputs, and a function that makes
inputs of another batch size. `python benchmarks/zoo.py SET` prints the names of a set.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

Inputs = tuple[tuple[Any, ...], dict[str, Any]]
Built = tuple[Any, Inputs, Callable[[int], Inputs]]

CORE_TORCHVISION = (
    "alexnet vgg16_bn@64 resnet18@64 resnet50@64 resnext50_32x4d@64 wide_resnet50_2@64 densenet121@64 googlenet@96 inception_v3@299 "
    "squeezenet1_1@64 mobilenet_v2@64 mobilenet_v3_large@64 shufflenet_v2_x1_0@64 mnasnet1_0@64 efficientnet_b0@64 efficientnet_v2_s@64 "
    "regnet_y_400mf@64 convnext_tiny@64 vit_b_16@224 swin_t@64 swin_v2_t@64 maxvit_t@224 deeplabv3_resnet50@64 fcn_resnet50@64 "
    "lraspp_mobilenet_v3_large@64"
)
CORE_TIMM = (
    "deit_tiny_patch16_224@224 beit_base_patch16_224@224 levit_128s@224 cait_xxs24_224@224 mixer_s32_224@224 xcit_nano_12_p16_224@224 "
    "pvt_v2_b0@64 twins_pcpvt_small@224 hrnet_w18_small@64 res2net50_26w_4s@64 resnest14d@64 nfnet_f0@64 ghostnet_100@64 "
    "edgenext_xx_small@64 efficientformer_l1@224 poolformer_s12@64 repvgg_a2@64 halonet26t@256 coat_lite_tiny@224 mobilevit_xxs@64"
)
CORE_TRANSFORMERS = "bert vit gpt2 llama t5 whisper"


def core() -> list[str]:
    """The list that every change is run on."""
    named = (("torchvision", CORE_TORCHVISION), ("timm", CORE_TIMM), ("hf", CORE_TRANSFORMERS))
    return [f"{source}:{name}" for source, names in named for name in names.split()]


def torchvision_all() -> list[str]:
    """Every torchvision model that is not quantized."""
    import torchvision

    return [f"torchvision:{name}" for name in torchvision.models.list_models() if not name.startswith("quantized")]


def timm_families() -> list[str]:
    """One timm model, the smallest, of each entry in `data/timm_families.txt`: a module of timm and the first word of a name."""
    return [f"timm:{name}" for name in (Path(__file__).parent / "data" / "timm_families.txt").read_text().split()]


def timm_all() -> list[str]:
    """Every timm model."""
    import timm

    return [f"timm:{name}" for name in timm.list_models()]


def transformers_all() -> list[str]:
    """Small random configurations of transformers' architectures."""
    return [f"hf:{name}" for name in _TRANSFORMERS] + [f"hf:{name}-head" for name in _HEADS]


def others() -> list[str]:
    """Models of other libraries."""
    return [f"smp:{kind}-{encoder}" for kind in ("Unet", "FPN") for encoder in ("resnet18", "mobilenet_v2", "efficientnet-b0")] + [
        "diffusers:unet2d",
        "diffusers:dit",
        *(f"pyg:{name}" for name in _GRAPH_LAYERS),
    ]


SETS: dict[str, Callable[[], list[str]]] = {
    "core": core,
    "torchvision": torchvision_all,
    "timm-families": timm_families,
    "timm": timm_all,
    "transformers": transformers_all,
    "others": others,
}


def build(name: str) -> Built:
    """The model of that name with random weights, example inputs, and inputs of another batch size."""
    import torch

    torch.manual_seed(0)
    source, _, rest = name.partition(":")
    plain, _, size = rest.partition("@")
    builders = {"torchvision": _torchvision, "timm": _timm, "hf": _transformer, "smp": _smp, "diffusers": _diffusers, "pyg": _graphs}
    if source not in builders:
        raise SystemExit(f"{name!r} is no name of a model: it starts with none of {', '.join(builders)}.")
    return builders[source](plain, int(size) if size else None)


def _images(size: int, channels: int = 3) -> Callable[[int], Inputs]:
    import torch

    return lambda batch: ((torch.randn(batch, channels, size, size),), {})


def _torchvision(name: str, size: int | None) -> Built:
    import torch
    import torchvision

    detector = any(word in name for word in ("rcnn", "retinanet", "fcos", "ssd"))
    segmenter = any(word in name for word in ("deeplab", "fcn_", "lraspp"))
    more: dict[str, Any] = {"weights_backbone": None} if detector or segmenter else {}
    more |= {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    side = size or (300 if name.startswith("ssd") else 128)
    if detector and not name.startswith("ssd"):
        more |= {"min_size": side, "max_size": side}  # they enlarge images to 800 pixels on their own
    if "rcnn" in name:
        more |= {"rpn_post_nms_top_n_test": 20, "box_detections_per_img": 5}  # untrained weights find something everywhere
    model = torchvision.models.get_model(name, weights=None, **more).eval()
    if detector:

        def listed(batch: int) -> Inputs:
            return ([torch.rand(3, side, side) for _ in range(batch)],), {}

        return model, listed(1), listed
    if name.startswith("raft"):
        side = size or 128

        def pairs(batch: int) -> Inputs:
            return (torch.randn(batch, 3, side, side), torch.randn(batch, 3, side, side), 2), {}

        return model, pairs(1), pairs
    video = {"mvit_v1_b": (16, 224), "mvit_v2_s": (16, 224), "s3d": (16, 224)}
    if name in video or name in ("mc3_18", "r2plus1d_18", "r3d_18") or name.startswith("swin3d"):
        frames, side = video.get(name, (8, 64))

        def clips(batch: int) -> Inputs:
            return (torch.randn(batch, 3, frames, side, side),), {}

        return model, clips(1), clips
    fixed = 224 if name.startswith(("vit_", "maxvit", "alexnet")) else 299 if name == "inception_v3" else 64
    inputs = _images(size or fixed)
    return model, inputs(2), inputs


def _timm(name: str, size: int | None) -> Built:
    import timm

    model = timm.create_model(name).eval()
    channels, side, _ = model.pretrained_cfg.get("input_size", (3, 224, 224))
    inputs = _images(size or _smallest(model, channels, side), channels)
    return model, inputs(2), inputs


def _smallest(model: Any, channels: int, side: int) -> int:
    """The smallest of some sizes on which the model runs; at the latest its own."""
    import torch

    for smaller in (64, 128, 160, 192):
        if smaller < side:
            with contextlib.suppress(Exception), torch.no_grad():
                model(torch.randn(1, channels, smaller, smaller))
                return smaller
    return side


def _smp(name: str, size: int | None) -> Built:
    import segmentation_models_pytorch as smp

    kind, encoder = name.split("-", 1)
    model = getattr(smp, kind)(encoder_name=encoder, encoder_weights=None, classes=2).eval()
    inputs = _images(size or 64)
    return model, inputs(2), inputs


def _diffusers(name: str, size: int | None) -> Built:
    import diffusers
    import torch

    side = size or 16
    if name == "unet2d":
        blocks = {"block_out_channels": (32, 64), "norm_num_groups": 8, "layers_per_block": 1, "attention_head_dim": 8}
        kinds = {"down_block_types": ("DownBlock2D", "AttnDownBlock2D"), "up_block_types": ("AttnUpBlock2D", "UpBlock2D")}
        model = diffusers.UNet2DModel(sample_size=side, in_channels=3, out_channels=3, **blocks, **kinds)
    else:
        model = diffusers.DiTTransformer2DModel(
            num_attention_heads=4, attention_head_dim=8, in_channels=4, num_layers=2, sample_size=side, patch_size=2, norm_num_groups=8
        )

    def inputs(batch: int) -> Inputs:
        noise = torch.randn(batch, 3 if name == "unet2d" else 4, side, side)
        labels = {} if name == "unet2d" else {"class_labels": torch.zeros(batch, dtype=torch.long)}
        return (noise, torch.full((batch,), 7)), {**labels, "return_dict": False}

    return model.eval(), inputs(2), inputs


_GRAPH_LAYERS = {"gcn": ("GCNConv", 1), "sage": ("SAGEConv", 1), "gat": ("GATConv", 4), "gatv2": ("GATv2Conv", 4), "gin": ("GINConv", 1)}


def _graphs(name: str, size: int | None) -> Built:
    """Two layers of messages between nodes and a classifier of nodes; another batch is a larger graph."""
    import torch
    import torch_geometric.nn as layers

    kind, heads = _GRAPH_LAYERS[name]

    class Nodes(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = _graph_layer(layers, kind, 12, heads), _graph_layer(layers, kind, 32 * heads, heads)
            self.head = torch.nn.Linear(32 * heads, 5)

        def forward(self, x: Any, edges: Any) -> Any:
            return self.head(self.second(self.first(x, edges).relu(), edges).relu())

    def inputs(batch: int) -> Inputs:
        nodes = 20 * batch
        return (torch.randn(nodes, 12), torch.randint(0, nodes, (2, 4 * nodes))), {}

    return Nodes().eval(), inputs(2), inputs


def _graph_layer(layers: Any, kind: str, width: int, heads: int) -> Any:
    import torch

    if kind == "GINConv":
        return layers.GINConv(torch.nn.Sequential(torch.nn.Linear(width, 48), torch.nn.ReLU(), torch.nn.Linear(48, 32)))
    return getattr(layers, kind)(width, 32, **({"heads": heads} if heads > 1 else {}))


_SMALL = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128}
_TOKENS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_TEXT = {**_SMALL, "vocab_size": 100, **_TOKENS}
_GROUPED = {**_TEXT, "num_key_value_heads": 2, "head_dim": 16}
_SIDES = {f"{side}_{what}": n for side in ("encoder", "decoder") for what, n in (("layers", 2), ("attention_heads", 4), ("ffn_dim", 128))}
_SEQ2SEQ = {"d_model": 64, "vocab_size": 100, **_SIDES, **_TOKENS, "decoder_start_token_id": 1, "max_position_embeddings": 64}
_IMAGE = {**_SMALL, "image_size": 32, "patch_size": 8}
_STAGES = {"depths": [1, 1], "num_heads": [2, 4], "embed_dim": 16, "image_size": 32, "patch_size": 4, "window_size": 4}
_SPEECH = {"conv_dim": (16, 16), "conv_stride": (5, 2), "conv_kernel": (10, 3), "num_conv_pos_embeddings": 16}
_SPEECH |= {"num_conv_pos_embedding_groups": 4, "num_feat_extract_layers": 2, "feat_extract_norm": "group"}
_CLIP_SIDES = {
    "text_config": {**_TEXT, "max_position_embeddings": 32, "projection_dim": 32},
    "vision_config": {**_IMAGE, "projection_dim": 32},
}
_GPT = {"n_embd": 64, "n_layer": 2, "n_head": 4, "vocab_size": 100, "bos_token_id": 0, "eos_token_id": 1}
_T5 = {"num_heads": 4, "num_layers": 2, "d_model": 64, "d_ff": 128, "d_kv": 16, "vocab_size": 100, **_TOKENS, "decoder_start_token_id": 1}
_WHISPER = {**_SEQ2SEQ, "num_mel_bins": 16, "max_source_positions": 32, "max_target_positions": 32}

# The same architectures with a head for a task: what they return is no longer the stream itself, whose width then is free.
_HEADS = {
    "bert": "BertForSequenceClassification",
    "xlm_roberta": "XLMRobertaForSequenceClassification",
    "deberta_v2": "DebertaV2ForSequenceClassification",
    "mpnet": "MPNetForSequenceClassification",
    "whisper": "WhisperForConditionalGeneration",
    "wav2vec2": "Wav2Vec2ForCTC",
    "hubert": "HubertForCTC",
    "vit": "ViTForImageClassification",
    "deit": "DeiTForImageClassification",
    "beit": "BeitForImageClassification",
    "dinov2": "Dinov2ForImageClassification",
}

# For each name: the model's class, its configuration's class, the settings, and which inputs it takes.
_TRANSFORMERS: dict[str, tuple[str, str, dict[str, Any], str]] = {
    "bert": ("BertModel", "BertConfig", _TEXT, "masked"),
    "roberta": ("RobertaForMaskedLM", "RobertaConfig", _TEXT, "masked"),
    "distilbert": (
        "DistilBertForSequenceClassification",
        "DistilBertConfig",
        {"dim": 64, "n_layers": 2, "n_heads": 4, "hidden_dim": 128, "vocab_size": 100},
        "masked",
    ),
    "albert": ("AlbertModel", "AlbertConfig", {**_TEXT, "embedding_size": 32}, "masked"),
    "electra": ("ElectraModel", "ElectraConfig", {**_TEXT, "embedding_size": 32}, "masked"),
    "deberta_v2": (
        "DebertaV2Model",
        "DebertaV2Config",
        {**_TEXT, "relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 8},
        "masked",
    ),
    "mpnet": ("MPNetModel", "MPNetConfig", _TEXT, "masked"),
    "xlm_roberta": ("XLMRobertaModel", "XLMRobertaConfig", _TEXT, "masked"),
    "modernbert": (
        "ModernBertModel",
        "ModernBertConfig",
        {**_TEXT, "cls_token_id": 1, "sep_token_id": 2, "reference_compile": False},
        "masked",
    ),
    "gpt2": ("GPT2LMHeadModel", "GPT2Config", _GPT, "causal"),
    "gpt_neox": ("GPTNeoXForCausalLM", "GPTNeoXConfig", _TEXT, "causal"),
    "opt": (
        "OPTForCausalLM",
        "OPTConfig",
        {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "ffn_dim": 128, "vocab_size": 100, "word_embed_proj_dim": 64},
        "causal",
    ),
    "bloom": ("BloomForCausalLM", "BloomConfig", {"hidden_size": 64, "n_layer": 2, "n_head": 4, "vocab_size": 100}, "causal"),
    "falcon": ("FalconForCausalLM", "FalconConfig", _TEXT, "causal"),
    "llama": ("LlamaForCausalLM", "LlamaConfig", _GROUPED, "causal"),
    "mistral": ("MistralForCausalLM", "MistralConfig", _GROUPED, "causal"),
    "mixtral": ("MixtralForCausalLM", "MixtralConfig", {**_GROUPED, "num_local_experts": 4, "num_experts_per_tok": 2}, "causal"),
    "qwen2": ("Qwen2ForCausalLM", "Qwen2Config", _GROUPED, "causal"),
    "qwen3": ("Qwen3ForCausalLM", "Qwen3Config", _GROUPED, "causal"),
    "gemma": ("GemmaForCausalLM", "GemmaConfig", _GROUPED, "causal"),
    "gemma2": ("Gemma2ForCausalLM", "Gemma2Config", _GROUPED, "causal"),
    "phi3": ("Phi3ForCausalLM", "Phi3Config", _GROUPED, "causal"),
    "stablelm": ("StableLmForCausalLM", "StableLmConfig", _GROUPED, "causal"),
    "t5": ("T5ForConditionalGeneration", "T5Config", _T5, "translated"),
    "bart": ("BartModel", "BartConfig", _SEQ2SEQ, "translated"),
    "pegasus": ("PegasusForConditionalGeneration", "PegasusConfig", _SEQ2SEQ, "translated"),
    "marian": ("MarianMTModel", "MarianConfig", _SEQ2SEQ, "translated"),
    "whisper": ("WhisperModel", "WhisperConfig", _WHISPER, "spoken"),
    "wav2vec2": ("Wav2Vec2Model", "Wav2Vec2Config", {**_TEXT, **_SPEECH}, "waves"),
    "hubert": ("HubertModel", "HubertConfig", {**_TEXT, **_SPEECH}, "waves"),
    "vit": ("ViTModel", "ViTConfig", _IMAGE, "pixels"),
    "deit": ("DeiTModel", "DeiTConfig", _IMAGE, "pixels"),
    "swin": ("SwinModel", "SwinConfig", _STAGES, "pixels"),
    "swinv2": ("Swinv2Model", "Swinv2Config", _STAGES, "pixels"),
    "beit": ("BeitModel", "BeitConfig", _IMAGE, "pixels"),
    "dinov2": ("Dinov2Model", "Dinov2Config", _IMAGE, "pixels"),
    "convnext": ("ConvNextModel", "ConvNextConfig", {"hidden_sizes": [16, 32, 48, 64], "depths": [1, 1, 1, 1]}, "pixels"),
    "segformer": (
        "SegformerForSemanticSegmentation",
        "SegformerConfig",
        {"hidden_sizes": [16, 32, 48, 64], "depths": [1, 1, 1, 1], "num_attention_heads": [1, 2, 4, 4], "decoder_hidden_size": 32},
        "pixels64",
    ),
    "detr": (
        "DetrForObjectDetection",
        "DetrConfig",
        {
            "d_model": 32,
            **_SIDES,
            "num_queries": 5,
            "use_timm_backbone": True,
            "backbone": "resnet18",
            "use_pretrained_backbone": False,
            "backbone_config": None,
        },
        "pixels64",
    ),
    "clip": ("CLIPModel", "CLIPConfig", {**_CLIP_SIDES, "projection_dim": 32}, "both"),
    "siglip": ("SiglipModel", "SiglipConfig", _CLIP_SIDES, "both"),
    "blip": (
        "BlipForImageTextRetrieval",
        "BlipConfig",
        {
            "text_config": {**_TEXT, "max_position_embeddings": 32, "encoder_hidden_size": 64, "is_decoder": True, "sep_token_id": 3},
            "vision_config": _IMAGE,
            "image_text_hidden_size": 32,
            "projection_dim": 32,
        },
        "both",
    ),
    "sam": (
        "SamModel",
        "SamConfig",
        {
            "vision_config": {
                **_IMAGE,
                "image_size": 64,
                "output_channels": 32,
                "window_size": 4,
                "global_attn_indexes": [1],
                "num_pos_feats": 16,
                "mlp_dim": 128,
            },
            "prompt_encoder_config": {
                "hidden_size": 32,
                "image_size": 64,
                "patch_size": 8,
                "image_embedding_size": 8,
                "mask_input_channels": 8,
            },
            "mask_decoder_config": {
                "hidden_size": 32,
                "mlp_dim": 64,
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
                "iou_head_hidden_dim": 32,
            },
        },
        "prompted",
    ),
    "mask2former": (
        "Mask2FormerForUniversalSegmentation",
        "Mask2FormerConfig",
        {
            "hidden_dim": 32,
            "feature_size": 32,
            "mask_feature_size": 32,
            "encoder_feedforward_dim": 64,
            "dim_feedforward": 64,
            "encoder_layers": 1,
            "decoder_layers": 3,
            "num_attention_heads": 4,
            "num_queries": 5,
            "backbone_config": {
                **_STAGES,
                "model_type": "swin",
                "depths": [1, 1, 1, 1],
                "num_heads": [2, 2, 4, 4],
                "image_size": 64,
                "out_features": ["stage1", "stage2", "stage3", "stage4"],
            },
        },
        "pixels64",
    ),
}


def _transformer(name: str, size: int | None) -> Built:
    import torch
    import transformers

    plain, head, _ = name.partition("-head")
    model_class, config_class, settings, kind = _TRANSFORMERS[plain]
    model_class = _HEADS[plain] if head else model_class
    config = getattr(transformers, config_class)(**settings)
    model = getattr(transformers, model_class)(config).eval()

    def inputs(batch: int) -> Inputs:
        ids = torch.randint(3, 100, (batch, 16))
        mask = torch.ones_like(ids)
        mask[-1, 10:] = 0
        pixels = torch.randn(batch, 3, size or 32, size or 32)
        by_kind = {
            "masked": lambda: {"input_ids": ids, "attention_mask": mask},
            "causal": lambda: {"input_ids": ids, "attention_mask": mask, "use_cache": False},
            "translated": lambda: {"input_ids": ids, "decoder_input_ids": ids, "use_cache": False},
            "spoken": lambda: {"input_features": torch.randn(batch, 16, 64), "decoder_input_ids": ids, "use_cache": False},
            "waves": lambda: {"input_values": torch.randn(batch, 1600)},
            "pixels": lambda: {"pixel_values": pixels},
            "pixels64": lambda: {"pixel_values": torch.randn(batch, 3, size or 64, size or 64)},
            "both": lambda: {"input_ids": ids, "attention_mask": mask, "pixel_values": pixels},
            "prompted": lambda: {"pixel_values": torch.randn(batch, 3, 64, 64), "input_points": torch.rand(batch, 1, 2, 2) * 64},
        }
        return (), by_kind[kind]()

    return model, inputs(2), inputs


if __name__ == "__main__":
    chosen = sys.argv[1] if len(sys.argv) > 1 else ""
    if chosen not in SETS:
        raise SystemExit(f"Give one of the sets: {', '.join(SETS)}.")
    print("\n".join(SETS[chosen]()))
