"""Files that are no models for fxprune, by suffix: what they are, and what to give instead."""

_WEIGHTS = "this file holds weights and no model; give a function that builds the model and loads them"

#: suffix: what such a file is, and what to do instead
FOREIGN = {
    ".onnx": "an ONNX file is what comes out of fxprune, not what goes in: it has lost its modules and cannot be trained; "
    "give the PyTorch model that it was exported from (torch.export.save writes FILE.pt2), and fxprune writes a smaller ONNX file",
    ".safetensors": _WEIGHTS,
    ".bin": _WEIGHTS,
    ".pt": _WEIGHTS,
    ".pth": _WEIGHTS,
}
