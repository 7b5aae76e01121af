"""Export: a result as a directory of files that other programs open, and back."""

from secateur.export.directory import Directory, read_directory, save_directory
from secateur.export.load import load
from secateur.export.prove import Proven, prove_directory, proven_directory
from secateur.export.saved import Saved

__all__ = ["Directory", "Proven", "Saved", "load", "prove_directory", "proven_directory", "read_directory", "save_directory"]
