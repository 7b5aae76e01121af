"""Models whose config sets their widths: what a cut must look like for a config to describe it, and files that their class loads."""

from secateur.pretrained.config import config_of
from secateur.pretrained.describe import describe
from secateur.pretrained.description import Description
from secateur.pretrained.files import save_pretrained
from secateur.pretrained.ties import uniform_ties

__all__ = ["Description", "config_of", "describe", "save_pretrained", "uniform_ties"]
