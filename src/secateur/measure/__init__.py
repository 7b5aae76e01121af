"""Measure a model: parameters, bytes, multiply-adds, memory, latency, and fidelity to the dense model."""

from secateur.measure.fidelity import Agreement, Fidelity, compare_outputs
from secateur.measure.formulas import Call, Product, counts
from secateur.measure.latency import Latency, compare_latency, slower_than_dense
from secateur.measure.layer_times import EagerTimer, LayerTimes, Machine, Repeats
from secateur.measure.macs import MacCount, count_macs
from secateur.measure.measurement import Measurement, measure
from secateur.measure.memory import live_bytes, peak_activation_bytes, weight_bytes
from secateur.measure.onnx_runtime import onnx_latency
from secateur.measure.onnx_times import OnnxComparison, OnnxTimer, require_onnx
from secateur.measure.operation import Operation

__all__ = [
    "Agreement",
    "Call",
    "EagerTimer",
    "Fidelity",
    "Latency",
    "LayerTimes",
    "MacCount",
    "Machine",
    "Measurement",
    "OnnxComparison",
    "OnnxTimer",
    "Operation",
    "Product",
    "Repeats",
    "compare_latency",
    "compare_outputs",
    "count_macs",
    "counts",
    "live_bytes",
    "measure",
    "onnx_latency",
    "peak_activation_bytes",
    "require_onnx",
    "slower_than_dense",
    "weight_bytes",
]
