"""Library patches: a model of transformers is captured without asking for them, and nothing of it stays patched."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from fxprune import Program, analyze, capture
from fxprune.errors import CaptureError
from fxprune.frontend import library_patches
from fxprune.frontend.library_patches import Library
from fxprune.passes import parse_pipeline
from support.models import distance
from zoo.check import randomise

transformers = pytest.importorskip("transformers")

IDS = torch.arange(26).reshape(2, 13) % 19
SIZES = {
    "vocab_size": 19,
    "hidden_size": 16,
    "intermediate_size": 12,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "num_experts_per_tok": 2,
}
MORE = {
    "Mixtral": {"num_local_experts": 6},
    "Qwen2Moe": {"num_experts": 6, "moe_intermediate_size": 8, "shared_expert_intermediate_size": 20},
}


@cache
def mixture(family: str, experts: str) -> nn.Module:
    """A tiny mixture of experts in evaluation mode, whose experts run as `experts` says."""
    config = getattr(transformers, f"{family}Config")(**SIZES, **MORE[family], attention_dropout=0.25)
    made: nn.Module = getattr(transformers, f"{family}ForCausalLM")._from_config(
        config, experts_implementation=experts
    )
    randomise(made)
    return made.eval()


@cache
def program_of(family: str, experts: str, dynamic: bool) -> Program:
    return capture(mixture(family, experts), kwargs={"input_ids": IDS}, dynamic_shapes=dynamic or None)


@pytest.mark.parametrize("family", list(MORE))
@pytest.mark.parametrize("experts", ["grouped_mm", "eager"])
@pytest.mark.parametrize("dynamic", [False, True])
def test_a_mixture_of_experts_is_captured_without_asking(family: str, experts: str, dynamic: bool) -> None:
    model, program = mixture(family, experts), program_of(family, experts, dynamic)
    found, wanted = program(input_ids=IDS), model(input_ids=IDS)
    assert type(found) is type(wanted)
    assert distance(found.logits, wanted.logits) < 1e-6
    assert program.free_dims() == ({"input_ids": (0, 1)} if dynamic else {})
    if dynamic:
        longer = IDS.repeat(2, 2)
        assert distance(program(input_ids=longer).logits, model(input_ids=longer).logits) < 1e-6


@pytest.mark.parametrize(
    ("family", "neurons"),
    [
        ("Mixtral", {"experts.ffn": 12}),
        ("Qwen2Moe", {"experts.ffn": 8, "shared_expert.ffn": 20}),
    ],
)
def test_experts_are_found_pruned_and_proven(family: str, neurons: dict[str, int]) -> None:
    program = program_of(family, "eager", dynamic=True)
    sizes = {axis.name.partition("mlp.")[2]: axis.size for axis in analyze(program).axes if axis.exact}
    assert {name: size for name, size in sizes.items() if name} == {"experts": 6, **neurons}
    result = parse_pipeline("experts(ratio=0.5)").run(program)
    assert [axis.size for axis in analyze(result.program).axes if axis.role == "experts"] == [3]
    proof = result.proof
    assert proof.relative <= proof.bar
    assert proof.change > 1e-3


class Scorer(nn.Module):
    """A model of transformers as a part of another module."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body, self.head = body, nn.Linear(19, 5)

    def forward(self, ids: Tensor) -> Tensor:
        scores: Tensor = self.head(self.body(input_ids=ids).logits.mean(1))
        return scores


def test_a_module_around_a_model_of_transformers_gets_the_patches_too() -> None:
    model = Scorer(mixture("Mixtral", "eager")).eval()
    program = capture(model, (IDS,), dynamic_shapes=True)
    assert distance(program(IDS), model(IDS)) < 1e-6
    assert [axis.size for axis in analyze(program).axes if axis.role == "experts"] == [6]


def test_the_dropout_of_training_is_read_under_patches_too() -> None:
    model = mixture("Mixtral", "eager")
    program = capture(model, kwargs={"input_ids": IDS}, training=True)
    module: Any = program.module()
    same = [torch.equal(module(input_ids=IDS).logits, module(input_ids=IDS).logits)]
    module.train()
    same.append(torch.equal(module(input_ids=IDS).logits, module(input_ids=IDS).logits))
    assert same == [True, False]
    assert not model.training


class Choosy(nn.Module):
    """What torch can't capture, for it looks at values."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, ids: Tensor) -> Tensor:
        logits: Tensor = self.body(input_ids=ids).logits
        return logits if logits.sum() > 0 else -logits


def state(model: nn.Module) -> list[Any]:
    """What the patches replace, by identity, and how the experts run."""
    masks, imports = transformers.masking_utils, transformers.utils.import_utils
    parts: list[Any] = [part for part in model.modules() if hasattr(part, "config")]
    replaced = [F.scaled_dot_product_attention, masks._vmap_expansion_sdpa, imports.is_kernels_available]
    return [*replaced, *(part.config._experts_implementation for part in parts)]


def test_a_failed_capture_leaves_nothing_patched_and_says_the_first_reason(
    capfd: pytest.CaptureFixture[str],
) -> None:
    model = Choosy(mixture("Mixtral", "eager"))
    before = state(model)
    assert before[3:] == ["eager"] * len(before[3:])
    with pytest.raises(CaptureError) as caught:
        capture(model, (IDS,))
    first, second = str(caught.value).split("; with the patches of transformers: ")
    assert "for expert_idx in expert_hit" in first
    assert "if logits.sum() > 0" in second
    assert state(model) == before
    assert capfd.readouterr() == ("", "")


class Picky(nn.Module):
    """What torch can't capture, for `pick` looks at values."""

    def forward(self, x: Tensor) -> Tensor:
        return self.pick(x)

    def pick(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


def patched_by(offset: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the only library be one whose patch of `pick` is off by so much."""

    @contextmanager
    def patched(model: nn.Module) -> Iterator[None]:
        sys.stdout.write("patching")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Picky, "pick", lambda self, x: torch.where(x.sum() > 0, x, -x) + offset)
            yield

    row = Library("picks", lambda model: isinstance(model, Picky), patched)
    monkeypatch.setattr(library_patches, "LIBRARIES", (row,))


def test_another_library_is_a_row_and_its_prints_stay_off_the_terminal(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    patched_by(0.0, monkeypatch)
    assert capture(Picky(), (-torch.ones(2, 3),))(-torch.ones(2, 3)).tolist() == [[1.0] * 3] * 2
    assert capfd.readouterr() == ("", "")


def test_a_program_captured_under_patches_must_agree_with_the_model_without(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    patched_by(1.0, monkeypatch)
    with pytest.raises(CaptureError, match="differs from the model by 1 on the example inputs") as caught:
        capture(Picky(), (-torch.ones(2, 3),))
    assert str(caught.value).startswith("torch.export could not capture Picky: GuardOnDataDependent")


def test_patches_that_cannot_be_applied_leave_the_first_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    @contextmanager
    def missing(model: nn.Module) -> Iterator[None]:
        raise AttributeError("no registry in this version")
        yield

    row = Library("picks", lambda model: True, missing)
    monkeypatch.setattr(library_patches, "LIBRARIES", (row,))
    why = "^torch.export could not capture Picky: .*; with the patches of picks: they can't be applied: AttributeError"
    with pytest.raises(CaptureError, match=why):
        capture(Picky(), (torch.ones(2, 3),))


PLAIN = """
import sys, torch, fxprune
from fxprune.errors import CaptureError
class Branches(torch.nn.Module):
    def forward(self, x): return x if x.sum() > 0 else -x
fxprune.capture(torch.nn.Linear(3, 4), (torch.randn(2, 3),))
try: fxprune.capture(Branches(), (torch.randn(2, 3),))
except CaptureError as error: assert "patches" not in str(error)
else: raise AssertionError
assert "transformers" not in sys.modules
"""


def test_a_plain_module_imports_no_transformers() -> None:
    ran = subprocess.run([sys.executable, "-c", PLAIN], capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stderr) == (0, "")
