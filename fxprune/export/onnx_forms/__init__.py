"""ONNX forms: operators that torch's exporter lacks or writes wrongly, in terms of others; `fxprune.export.onnx_rewrites` has the table."""
