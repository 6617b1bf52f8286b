"""The pass FxPrune within Microsoft Olive itself (in a venv of its own: `python tests/support/olive_workflow.py FOLDER`)."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("olive", reason="needs Microsoft Olive: run tests/support/olive_workflow.py")

import numpy as np
import onnxruntime
import torch
from olive.model import ModelConfig
from olive.passes.olive_pass import create_pass_from_dict
from olive.workflows import run
from transformers import BertConfig, BertModel

from fxprune.errors import ExportError
from fxprune.integrations.olive.olive_pass import FxPrune, package_config, write_package_config

SIZES: dict[str, Any] = {"hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 64}
SCRIPT = """
import torch
from torch import nn
from olive.data.registry import Registry

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.up, self.down = nn.Linear(6, 16), nn.Linear(16, 6)
    def forward(self, x):
        return self.down(self.up(x).relu())

def load(path):
    return Net()

@Registry.register_dataset()
def rows(data_dir=None, **_):
    torch.manual_seed(1)
    return [({"x": torch.randn(6)}, 0) for _ in range(64)]
"""
IO = {
    "input_names": ["x"],
    "input_shapes": [[1, 6]],
    "input_types": ["float32"],
    "output_names": ["y"],
    "dynamic_axes": {"x": {"0": "batch"}, "y": {"0": "batch"}},
}


def bert(folder: Path) -> dict[str, Any]:
    torch.manual_seed(0)
    BertModel(BertConfig(vocab_size=99, num_hidden_layers=2, **SIZES)).save_pretrained(folder)
    return {"type": "HfModel", "model_path": str(folder), "task": "feature-extraction"}


def net(folder: Path, **io: Any) -> dict[str, Any]:
    script = folder / "net.py"
    script.write_text(SCRIPT)
    told = {"model_loader": "load", "model_script": str(script), "io_config": {**IO, **io}}
    return {"type": "PyTorchModel", **told}


def passed(model: dict[str, Any], folder: Path, **options: Any) -> Any:
    """What the pass makes of a model, as Olive's system calls it."""
    made = create_pass_from_dict(FxPrune, options, disable_search=True)
    return made.run(ModelConfig.model_validate(model).create_model(), str(folder / "out"))


def session(handler: Any) -> Any:
    return onnxruntime.InferenceSession(handler.model_path, providers=["CPUExecutionProvider"])


def test_a_hugging_face_model_becomes_a_smaller_onnx_model(tmp_path: Path) -> None:
    made = passed(bert(tmp_path / "bert"), tmp_path, pipeline="heads(ratio=0.25), ffn(ratio=0.5), fold")
    figures = made.model_attributes["fxprune"]
    assert figures["after"]["parameters"] < figures["before"]["parameters"]
    assert figures["relative"] <= figures["bar"]
    assert (figures["exact"], figures["onnx"]["opset"]) == (4, 20)
    assert figures["change"] > 1e-3
    assert [Path(file).name for file in made.model_attributes["additional_files"]] == ["selection.json"]
    assert made.model_attributes["hf_task"] == "feature-extraction"
    assert made.io_config["input_names"] == ["input_ids", "attention_mask", "token_type_ids"]
    assert made.io_config["output_names"] == ["last_hidden_state", "pooler_output"]
    assert made.io_config["input_shapes"] == [["batch", "length"]] * 3


def test_a_batch_of_one_stays_dynamic_and_a_bare_output_gets_its_name(tmp_path: Path) -> None:
    made = passed(net(tmp_path), tmp_path, pipeline="ffn(ratio=0.5)")
    (found,) = session(made).run(["y"], {"x": np.ones((5, 6), np.float32)})
    assert found.shape == (5, 6)
    assert made.model_attributes["fxprune"]["after"]["parameters"] == 110


def test_calibration_data_come_by_data_config(tmp_path: Path) -> None:
    model = net(tmp_path)
    data = {"name": "rows", "user_script": model["model_script"], "load_dataset_config": {"type": "rows"}}
    data["dataloader_config"] = {"batch_size": 8}
    made = passed(model, tmp_path, pipeline="slim(params=0.6)", data_config=data)
    figures = made.model_attributes["fxprune"]
    assert figures["refitted"] > 0
    assert figures["after"]["parameters"] <= 0.6 * figures["before"]["parameters"]


@pytest.mark.parametrize(
    ("options", "io", "sentence"),
    [
        ({"pipeline": "heads(ration=0.5)"}, {}, "heads has no option 'ration'; options: ratio, score"),
        ({"pipeline": "fold", "free_outputs": ["z"]}, {}, "no output 'z' to free; outputs: y"),
        ({"pipeline": "slim(params=0.5)"}, {}, "needs calibration data"),
        ({"pipeline": "grain(density=0.1)"}, {}, "grain decides while a model trains"),
        ({"pipeline": "fold"}, {"output_names": ["y", "z"]}, "called y, z, and the model has only 1"),
        (
            {"pipeline": "fold"},
            {"input_names": ["a"]},
            "'a', and Net.forward takes x: name inputs in io_config",
        ),
    ],
)
def test_refusals_are_value_errors_with_the_sentence(
    tmp_path: Path, options: dict[str, Any], io: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(sentence)):
        passed(net(tmp_path, **io), tmp_path, **options)


def test_a_model_that_is_onnx_already_is_refused(tmp_path: Path) -> None:
    made = passed(net(tmp_path), tmp_path, pipeline="fold")
    sentence = "takes a HfModelHandler or PyTorchModelHandler, got ONNXModelHandler: let it come before"
    with pytest.raises(ValueError, match=sentence):
        passed({"type": "ONNXModel", "model_path": made.model_path}, tmp_path, pipeline="fold")


def test_a_cache_as_input_is_refused(tmp_path: Path) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    LlamaForCausalLM(LlamaConfig(vocab_size=99, num_hidden_layers=1, **SIZES)).save_pretrained(
        tmp_path / "llama"
    )
    model = {"type": "HfModel", "model_path": str(tmp_path / "llama")}
    with pytest.raises(ValueError, match="models that take a cache are not supported here"):
        passed({**model, "task": "text-generation-with-past"}, tmp_path, pipeline="ffn(ratio=0.5)")
    with pytest.raises(ValueError, match=r"no output present\.0\.key"):
        passed({**model, "task": "text-generation"}, tmp_path, pipeline="ffn(ratio=0.5)")
    whole = {**model, "task": "text-generation", "load_kwargs": {"use_cache": False}}
    made = passed(whole, tmp_path, pipeline="ffn(ratio=0.5)")
    assert made.io_config["output_names"] == ["logits"]


def test_the_package_config_has_olives_own_passes_too(tmp_path: Path) -> None:
    file = tmp_path / "package.json"
    write_package_config(file)
    passes = json.loads(file.read_text())["passes"]
    assert passes["FxPrune"]["module_path"] == "fxprune.integrations.olive.olive_pass.FxPrune"
    assert "OnnxDynamicQuantization" in passes
    with pytest.raises(ExportError, match="exists; give another name, or allow overwriting"):
        write_package_config(file)


def test_a_workflow_prunes_then_quantizes(tmp_path: Path) -> None:
    passes = {
        "prune": {"type": "FxPrune", "pipeline": "heads(ratio=0.5), ffn(ratio=0.5), fold"},
        "quantize": {"type": "OnnxDynamicQuantization", "precision": "int8"},
    }
    workflow = {
        "input_model": bert(tmp_path / "bert"),
        "passes": passes,
        "cache_dir": str(tmp_path / "cache"),
        "output_dir": str(tmp_path / "out"),
    }
    best = run(workflow, package_config=package_config()).get_best_candidate()
    assert best.from_pass() == "onnxdynamicquantization"
    assert best.model_config["model_attributes"]["fxprune"]["exact"] == 4
    assert sorted(file.name for file in (tmp_path / "out").iterdir() if file.suffix != ".txt") == [
        "footprint.json",
        "model.onnx",
        "model_config.json",
        "output_footprint.json",
        "selection.json",
    ]


def test_olive_evaluates_what_the_pass_alone_made_with_named_data(tmp_path: Path) -> None:
    model = net(tmp_path)
    ones = {"name": "ones", "type": "DummyDataContainer", "load_dataset_config": {"params": {**IO}}}
    texts = {"name": "texts", "user_script": model["model_script"], "load_dataset_config": {"type": "rows"}}
    metric = {"metric_config": {"warmup_num": 1, "repeat_test_num": 2}}
    latency: dict[str, Any] = {"name": "latency", "type": "latency", "data_config": "ones"}
    latency["sub_types"] = [{"name": "p50", "priority": 1, **metric}]
    size = {"name": "size", "type": "size_on_disk", "sub_types": [{"name": "bytes", "priority": 2}]}
    workflow = {
        "input_model": model,
        "passes": {"prune": {"type": "FxPrune", "pipeline": "slim(params=0.6)", "data_config": "texts"}},
        "data_configs": [ones, texts],
        "evaluators": {"speed": {"metrics": [latency, size]}},
        "evaluator": "speed",
        "cache_dir": str(tmp_path / "cache"),
        "output_dir": str(tmp_path / "out"),
    }
    best = run(workflow, package_config=package_config()).get_best_candidate()
    assert best.metrics_value["latency-p50"]["value"] > 0
    written = Path(best.model_config["model_path"], "model.onnx")
    assert best.metrics_value["size-bytes"]["value"] == written.stat().st_size
    assert best.model_config["model_attributes"]["fxprune"]["refitted"] > 0
