"""Pruned programs in torch's own toolchain: torch.compile, AOTInductor, and .pt2 files where there is no fxprune."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim
from torch.utils import _pytree as pytree

import fxprune
from fxprune import Program, capture, parse_pipeline
from fxprune.errors import CaptureError
from fxprune.export import to_exported_program
from fxprune.ir import example_point, inference, quiet
from fxprune.ir.example_inputs import call_inputs
from fxprune.ir.program import container_modules
from support.models import captured, distance

PIPELINE = "heads(ratio=0.25), ffn(ratio=0.5), channels(ratio=0.25), fold"
FAMILIES = ("bert", "gpt2", "vit", "resnet")

#: a process in which fxprune can't be imported reads a file, runs it on inputs, and writes the outputs
CHILD = """
import sys, importlib
sys.modules["fxprune"] = None
import numpy, torch
from torch.utils import _pytree as pytree
kind, path, inputs, outputs, *modules = sys.argv[1:]
for module in modules:
    importlib.import_module(module)
given = {name: torch.from_numpy(value) for name, value in numpy.load(inputs).items()}
run = torch.export.load(path).module() if kind == "pt2" else torch._inductor.aoti_load_package(path)
leaves = pytree.tree_leaves(run(**given))
numpy.savez(outputs, *[leaf.detach().numpy() for leaf in leaves])
print("transformers" in sys.modules)
"""


def programs(name: str) -> dict[str, Program]:
    """A program with dynamic sizes, and what pruning leaves of it."""
    pytest.importorskip("transformers")
    whole = vit() if name == "vit" else captured(name, dynamic=True)
    pruned = parse_pipeline(PIPELINE).run(whole).program
    assert pruned.parameter_count() < whole.parameter_count()
    return {"whole": whole, "pruned": pruned}


def vit() -> Program:
    import transformers

    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 64,
    }
    model = transformers.ViTModel(transformers.ViTConfig(**sizes, image_size=16, patch_size=8)).eval()
    # Not 3 images: torch takes sizes that are equal in its first call (here: images and colours) for one size.
    images = {"pixel_values": torch.randn(4, 3, 16, 16)}
    return capture(model, kwargs=images, dynamic_shapes={"pixel_values": {0: Dim.AUTO}})


def elsewhere(program: Program) -> list[tuple[tuple[Any, ...], dict[str, Any]]]:
    """Inputs at the examples and at two more sizes of everything that is dynamic."""
    here = example_point(program)
    return [call_inputs(program, {axis: size + more for axis, size in here.items()}) for more in (0, 2, 5)]


class Frames:
    """A backend of torch.compile that counts the graphs it is given."""

    def __init__(self, backend: str) -> None:
        self.backend, self.count = torch._dynamo.lookup_backend(backend), 0

    def __call__(self, graph: Any, examples: Any) -> Any:
        self.count += 1
        return self.backend(graph, examples)


def check_compiled(program: Program, backend: str) -> None:
    torch._dynamo.reset()
    frames = Frames(backend)
    with quiet(), inference():
        compiled = torch.compile(program.module(), fullgraph=True, dynamic=True, backend=frames)
        for args, kwargs in elsewhere(program):
            assert distance(compiled(*args, **kwargs), program(*args, **kwargs)) <= 1e-5
    assert frames.count == 1, "one graph, whatever the sizes"


def test_a_pruned_module_compiles_to_one_graph_for_all_sizes() -> None:
    net = nn.Sequential(nn.Linear(8, 32), nn.GELU(), nn.Dropout(0.5), nn.Linear(32, 4))
    program = capture(net.eval(), (torch.randn(3, 8),), dynamic_shapes=({0: Dim.AUTO},))
    check_compiled(parse_pipeline("ffn(ratio=0.5)").run(program).program, "eager")


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_compiles_to_one_graph_for_all_sizes(name: str) -> None:
    for program in programs(name).values():
        check_compiled(program, "eager")


def test_a_compiled_module_follows_train_and_eval() -> None:
    net = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Dropout(0.5), nn.Linear(32, 4))
    module = capture(net.eval(), (torch.randn(3, 8),)).module()
    torch._dynamo.reset()
    with quiet():
        compiled = torch.compile(module, backend="eager")
        given = torch.randn(3, 8)
        before = compiled(given)
        module.train()
        dropped = compiled(given)
        module.eval()
        after = compiled(given)
    assert not torch.allclose(before, dropped)
    assert torch.equal(before, after)


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_inductor_computes_the_same(name: str) -> None:
    for program in programs(name).values():
        check_compiled(program, "inductor")


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_aotinductor_packages_run_where_there_is_no_fxprune(name: str, tmp_path: Path) -> None:
    for which, program in programs(name).items():
        plain = program.plain()
        file = tmp_path / f"{which}.pt2"
        with quiet(), inference():
            torch._inductor.aoti_compile_and_package(to_exported_program(plain), package_path=str(file))
        for place, (_, kwargs) in enumerate(elsewhere(plain)):
            (tmp_path / str(place)).mkdir(exist_ok=True)
            found = in_child("aoti", file, kwargs, tmp_path / str(place))
            assert distance(found, program(**kwargs)) <= 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_a_file_of_every_family_runs_where_there_is_no_fxprune(name: str, tmp_path: Path) -> None:
    program = programs(name)["pruned"]
    file = fxprune.save_pt2(program, tmp_path / "model.pt2")
    kwargs = elsewhere(program)[1][1]
    assert distance(in_child("pt2", file, kwargs, tmp_path), program(**kwargs)) <= 1e-5


def test_a_file_runs_where_there_is_no_fxprune(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Linear(8, 32), nn.GELU(), nn.Linear(32, 4))
    whole = capture(net, kwargs={"input": torch.randn(3, 8)})
    program = parse_pipeline("ffn(ratio=0.5)").run(whole).program
    file = fxprune.save_pt2(program, tmp_path / "model.pt2")
    found = in_child("pt2", file, dict(program.kwargs), tmp_path)
    assert distance(found, program(**program.kwargs)) <= 1e-5


@pytest.mark.slow
def test_the_class_of_the_outputs_must_be_imported_first(tmp_path: Path) -> None:
    program = programs("bert")["pruned"]
    file = fxprune.save_pt2(program, tmp_path / "model.pt2", classes=True)
    kwargs = dict(program.kwargs)
    modules = container_modules(program)
    assert modules == ("transformers.modeling_outputs",)
    found = in_child("pt2", file, kwargs, tmp_path, *modules)
    assert distance(found, program(**kwargs)) <= 1e-5


def test_a_class_that_torch_does_not_know_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("transformers")
    program = captured("bert", dynamic=True)
    file = fxprune.save_pt2(program, tmp_path / "model.pt2", classes=True)
    known = pytree.SERIALIZED_TYPE_TO_PYTHON_TYPE
    kept = {name: kind for name, kind in known.items() if "transformers" not in name}
    monkeypatch.setattr(pytree, "SERIALIZED_TYPE_TO_PYTHON_TYPE", kept)
    pytree.treespec_loads.cache_clear()  # torch keeps what an earlier test has loaded
    sentence = r"made of transformers\.modeling_outputs\.\w+; first import transformers\.modeling_outputs$"
    with pytest.raises(CaptureError, match=sentence), quiet():
        capture(file)


def test_a_file_of_transformers_needs_none_of_its_classes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("transformers")
    program = captured("bert", dynamic=True)
    file = fxprune.save_pt2(program, tmp_path / "model.pt2")
    known = pytree.SERIALIZED_TYPE_TO_PYTHON_TYPE
    kept = {name: kind for name, kind in known.items() if "transformers" not in name}
    monkeypatch.setattr(pytree, "SERIALIZED_TYPE_TO_PYTHON_TYPE", kept)
    pytree.treespec_loads.cache_clear()  # torch keeps what an earlier test has loaded
    with quiet():
        again = capture(file)
    assert again.output_names() == program.output_names()
    assert distance(again(**program.kwargs), program(**program.kwargs)) <= 1e-6


def test_plain_outputs_keep_their_names_and_values() -> None:
    pytest.importorskip("transformers")
    program = captured("bert", dynamic=True)
    plain = program.plain()
    found = plain(*program.args, **program.kwargs)
    assert type(found) is dict
    assert plain.output_names() == program.output_names() == tuple(found)
    assert distance(found, program(*program.args, **program.kwargs)) == 0
    assert container_modules(plain) == ()
    assert "transformers" in container_modules(program)[0]


def in_child(kind: str, file: Path, kwargs: dict[str, Any], folder: Path, *modules: str) -> list[Tensor]:
    """Outputs of a file, run by a process that can't import fxprune, and has imported nothing but torch and the modules."""
    inputs, outputs = folder / "in.npz", folder / "out.npz"
    np.savez(inputs, **{name: value.numpy() for name, value in kwargs.items()})
    given = [kind, str(file), str(inputs), str(outputs), *modules]
    command = [sys.executable, "-I", "-W", "ignore", "-c", CHILD, *given]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.split()[-1] == str(bool(modules))
    with np.load(outputs) as found:
        return [torch.from_numpy(found[name]) for name in found.files]
