"""Write a program: as ONNX, as .pt2, or back into its module."""

from fxprune.export.exported_program import to_exported_program
from fxprune.export.onnx import Emitted, export_onnx
from fxprune.export.pt2 import save_pt2

__all__ = ["Emitted", "export_onnx", "save_pt2", "to_exported_program"]
