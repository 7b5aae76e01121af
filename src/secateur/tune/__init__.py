"""Train a compressed model further, with the dense one as its teacher."""

from secateur.tune.distillation import Distillation, Held
from secateur.tune.features import Feature, Features, match_features
from secateur.tune.finetune import FineTune
from secateur.tune.images import Images
from secateur.tune.losses import default_loss
from secateur.tune.metrics import MeanLoss, Top1
from secateur.tune.record import Epoch, Record, Tuned

__all__ = [
    "Distillation",
    "Epoch",
    "Feature",
    "Features",
    "FineTune",
    "Held",
    "Images",
    "MeanLoss",
    "Record",
    "Top1",
    "Tuned",
    "default_loss",
    "match_features",
]
