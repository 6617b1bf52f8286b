"""Write a program: as ONNX, as .pt2, or back into its module."""
