"""Hugging Face: checkpoints, configs, exporters of transformers, and a Trainer callback."""
