"""ONNX files as models: read into ordinary layers, checked against ONNX Runtime."""

from secateur.capture.onnx.check import Session, compare
from secateur.capture.onnx.load import load_onnx
from secateur.capture.onnx.model import FileNames, OnnxModel

__all__ = ["FileNames", "OnnxModel", "Session", "compare", "load_onnx"]
