"""Quantization to 8-bit integers after pruning: one quantizer, one file."""
