"""The public names: one call from a module to a proven result, and no function that a module of the same name hides."""

from __future__ import annotations

import importlib
import json
import pkgutil
from pathlib import Path
from types import ModuleType

import onnxruntime
import pytest
import torch
from torch import Tensor, nn

import fxprune
from fxprune.errors import CaptureError, PipelineError, UsageError
from fxprune.pipeline.report import FILES


class Net(nn.Module):
    """Two layers around an activation."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(8, 64), nn.Linear(64, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(torch.relu(self.up(x)))  # type: ignore[no-any-return]


def pruned(**more: object) -> fxprune.Result:
    torch.manual_seed(0)
    return fxprune.prune(Net(), "ffn(ratio=0.75), fold", (torch.randn(3, 8),), **more)  # type: ignore[arg-type]


def test_one_call_leads_from_a_module_to_a_proven_result() -> None:
    model = Net()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    result = fxprune.prune(model, "ffn(ratio=0.75), fold", (torch.randn(3, 8),))
    assert result.proof.exact == ("ffn",)
    assert result.proof.relative <= result.proof.bar == 1e-5
    assert len(result.selection["ffn"]) == 16
    kept = torch.tensor(result.selection["ffn"])
    x = torch.randn(3, 8)
    by_hand = torch.relu(x @ before["up.weight"][kept].T + before["up.bias"][kept])
    expected = by_hand @ before["down.weight"][:, kept].T + before["down.bias"]
    torch.testing.assert_close(result.module(x), expected)
    torch.testing.assert_close(result.program(x), expected)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert result.module is result.module


def test_the_report_is_plain_data() -> None:
    told = json.loads(json.dumps(pruned().report))
    assert told["format"] == "fxprune.result/1"
    assert told["pipeline"] == "ffn(ratio=0.75), fold"
    assert (told["before"]["parameters"], told["after"]["parameters"]) == (836, 212)
    assert (told["before"]["flops"], told["after"]["flops"]) == (4608, 1152)
    assert told["proof"]["exact"] == ["ffn"]
    assert [step["axes"] for step in told["steps"]] == [1, 0]


def test_a_result_is_saved_as_a_folder_and_not_over_another(tmp_path: Path) -> None:
    result = pruned(dynamic_shapes=({0: torch.export.Dim.AUTO},))
    out = result.save(tmp_path / "new" / "out")
    assert sorted(path.name for path in out.iterdir()) == sorted(FILES)
    x = torch.randn(5, 8)
    session = onnxruntime.InferenceSession(str(out / "model.onnx"))
    (said,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    torch.testing.assert_close(torch.from_numpy(said), result.module(x), rtol=1e-4, atol=1e-5)
    again = fxprune.apply(fxprune.capture(Net(), (x,)), fxprune.Selection.load(out / "selection.json"))
    assert again.parameter_count() == 212
    with pytest.raises(UsageError, match=r"holds model.onnx, .* already: give another folder"):
        result.save(out)
    assert result.save(out, overwrite=True) == out


def test_a_result_shows_itself() -> None:
    result = pruned()
    title, head, *rows, proof = str(result).splitlines()
    assert title == "836 parameters became 212 (3.94×)"
    assert head.split("  ")[0] == "pass"
    assert [row.split()[:3] for row in rows] == [["ffn(ratio=0.75)", "1", "212"], ["fold", "0", "212"]]
    assert proof.startswith("largest relative difference ")
    assert proof.endswith("(allowed 1e-05), over 1 exact axis")
    assert result._repr_html_().count("<tr>") == 3
    assert repr(result) == f"<{title}>"


def test_what_can_not_be_done_is_said_before_the_model_is_captured() -> None:
    class Never(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise AssertionError("it was called")

    with pytest.raises(PipelineError, match="no pass 'fnn'"):
        fxprune.prune(Never(), "fnn(ratio=0.5)", (torch.randn(3, 8),))
    with pytest.raises(UsageError, match="needs calibration data"):
        fxprune.prune(Never(), "slim(flops=0.5)", (torch.randn(3, 8),))
    with pytest.raises(CaptureError, match="it was called"):
        fxprune.prune(Never(), "ffn(ratio=0.5)", (torch.randn(3, 8),))


def test_calibration_data_are_given_as_they_are() -> None:
    result = pruned(context=fxprune.Context(data=[{"x": torch.randn(3, 8)}]))
    taylor = fxprune.prune(
        Net(),
        "ffn(ratio=0.5, score='obs')",
        (torch.randn(3, 8),),
        context=fxprune.Context(data=[torch.randn(3, 8)]),
    )
    assert result.program.parameter_count() == 212
    assert taylor.program.parameter_count() == 420


def test_a_pipeline_may_be_given_as_an_object() -> None:
    steps = fxprune.parse_pipeline("ffn(ratio=0.5)")
    assert fxprune.prune(Net(), steps, (torch.randn(3, 8),)).program.parameter_count() == 420


def _modules() -> list[ModuleType]:
    """All packages of fxprune, with every module of theirs imported where its libraries are there."""
    packages = [fxprune]
    for found in pkgutil.walk_packages(fxprune.__path__, "fxprune."):
        if found.name.endswith("__main__") or found.name.startswith("fxprune.tools"):
            continue
        try:
            module = importlib.import_module(found.name)
        except ImportError:
            continue
        packages += [module] if found.ispkg else []
    return packages


def test_no_public_name_is_hidden_by_a_module_of_its_name() -> None:
    handed = [(package, name) for package in _modules() for name in getattr(package, "__all__", ())]
    assert len(handed) > 150
    modules = [f"{p.__name__}.{n}" for p, n in handed if isinstance(getattr(p, n), ModuleType)]
    assert modules == []


def test_every_public_name_is_documented() -> None:
    undocumented = [name for name in fxprune.__all__ if not (getattr(fxprune, name).__doc__ or "").strip()]
    assert undocumented == []
