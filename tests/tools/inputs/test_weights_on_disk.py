"""Weights on disk: a sharded checkpoint opens, is captured and analysed without its weights being read into memory."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fxprune.ir import quiet

transformers = pytest.importorskip("transformers")

SHAPE = {
    "hidden_size": 512,
    "intermediate_size": 2048,
    "num_hidden_layers": 6,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "vocab_size": 4000,
}

SCRIPT = """
import ctypes
import sys
from fxprune import analyze, parse_pipeline
from fxprune.tools.inputs import models

def own_memory():
    ctypes.CDLL(None).malloc_trim(0)  # what was freed and kept by the allocator isn't held
    status = open("/proc/self/status").read()
    return int(status.split("RssAnon:")[1].split()[0]) << 10

PLAN = parse_pipeline("ffn(ratio=0.5, score='magnitude')").passes[0].plan
# Warm-up: modules imported on first use, and the buffers of matrix products of these widths.
PLAN(models.load("hf:" + sys.argv[2]).capture(()))
start = own_memory()
program = models.load("hf:" + sys.argv[1]).capture(())
opened = own_memory()
plan = PLAN(program)
print(opened - start, own_memory() - opened, program.parameter_bytes(), len(plan))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
def test_a_sharded_checkpoint_is_captured_without_reading_its_weights(tmp_path: Path) -> None:
    with quiet(), torch.random.fork_rng():
        model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**SHAPE))
        model.save_pretrained(tmp_path / "model", max_shard_size="40MB")
        shallow = transformers.LlamaConfig(**{**SHAPE, "num_hidden_layers": 1})
        transformers.LlamaForCausalLM(shallow).save_pretrained(tmp_path / "shallow")
    assert len([*(tmp_path / "model").glob("model-*.safetensors")]) > 2
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *(str(tmp_path / name) for name in ("model", "shallow"))],
        capture_output=True,
        text=True,
        check=True,
    )
    opened, planned, weights, axes = map(int, done.stdout.split()[-4:])
    assert (axes, weights > 100e6) == (6, True)
    assert opened < 0.2 * weights  # the graph, whatever the weights
    assert planned < 0.02 * weights
