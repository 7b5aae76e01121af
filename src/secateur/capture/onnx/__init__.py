"""ONNX files as models: read into ordinary layers, checked against ONNX Runtime.

Importers that exist were measured first (the page on ONNX files has the figures). The best of them reads as many files, but keeps
weights in no layers and shares whatever an exporter found equal, so that layers could not be factorized and would lose channels together.
"""

from secateur.capture.onnx.check import Session, compare
from secateur.capture.onnx.load import load_onnx
from secateur.capture.onnx.model import FileNames, OnnxModel

__all__ = ["FileNames", "OnnxModel", "Session", "compare", "load_onnx"]
