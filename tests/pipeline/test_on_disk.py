"""Programs on disk: what is pruned from files equals what is pruned in memory, and what does not fit is refused before the run."""

import pytest
import torch

from fxprune import Program
from fxprune.calibration import Calibration
from fxprune.errors import UsageError
from fxprune.ir.edit import on_disk
from fxprune.passes import parse_pipeline
from fxprune.pipeline import Context, Progress, Result
from fxprune.storage import is_mapped
from support.slimmable import BATCH, LENGTH, subject

FEW = 4096
"""Bytes of weights of a segment."""


@pytest.fixture
def from_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every program is too large for memory, and every tensor large enough for a file."""
    monkeypatch.setattr("fxprune.storage.limits.COPIES", 10**12)
    monkeypatch.setattr("fxprune.storage.scratch.SMALLEST_FILE", 1)
    monkeypatch.setattr("fxprune.calibration.segments.SEGMENT_BYTES", FEW)


def run(text: str, program: Program, data: Calibration, told: list[str] | None = None) -> Result:
    def observe(progress: Progress) -> None:
        if told is not None and progress.stage == "memory":
            told.append(progress.text)

    point = {"batch": BATCH, "length": LENGTH}
    return parse_pipeline(text).run(program, Context(data=data, point=point, cache=False, observe=observe))


PIPELINES = (
    ("bert", "slim(params=0.7), fold"),
    ("bert", "heads(ratio=0.5, score='activation'), ffn(ratio=0.5)"),
    ("llama", "slim(flops=0.7, repair='all+logits')"),
    ("gpt2", "ffn(ratio=0.5, score='taylor'), lowrank(energy=0.9)"),
    ("convs", "slim(flops=0.6, repair='all+kernels+norms')"),
)


@pytest.mark.parametrize(("name", "text"), PIPELINES)
def test_a_run_from_files_equals_one_in_memory(name: str, text: str, request: pytest.FixtureRequest) -> None:
    program, data = subject(name)
    plain = run(text, program, data)
    request.getfixturevalue("from_files")
    told: list[str] = []
    found = run(text, program, data, told)
    assert found.selection.to_json() == plain.selection.to_json()
    assert found.refitted == plain.refitted
    tensors, wanted = found.program.tensors(), plain.program.tensors()
    assert tensors.keys() == wanted.keys()
    for name_of, value in wanted.items():
        assert torch.allclose(tensors[name_of], value, rtol=1e-4, atol=1e-5), name_of
    assert found.program.is_mapped()
    assert all(is_mapped(value) for value in tensors.values() if isinstance(value, torch.nn.Parameter))
    assert found.proof.status == plain.proof.status == "equal"
    assert [text.partition(":")[0] for text in told] == ["the weights stay on disk"]


@pytest.mark.usefixtures("from_files")
def test_a_program_on_disk_gives_the_same_outputs() -> None:
    program, data = subject("gpt2")
    there = on_disk(program)
    assert there.is_mapped()
    one, other = (each(**data.batches[0]) for each in (program, there))
    assert torch.equal(one.logits, other.logits)
    assert type(one) is type(other)
    with pytest.raises(TypeError, match="unexpected keyword argument 'typo'"):
        there(**data.batches[0], typo=data.batches[0]["input_ids"])
    with pytest.raises(TypeError, match="missing a required argument"):
        there()


@pytest.mark.usefixtures("from_files")
def test_tied_tensors_stay_one_on_disk() -> None:
    program, _ = subject("gpt2")
    own, there = program.tensors(), on_disk(program).tensors()
    alike = {(one, other) for one in own for other in own if own[one] is own[other]}
    assert {(one, other) for one in there for other in there if there[one] is there[other]} == alike
    assert all(type(there[name]) is type(value) for name, value in own.items())
    assert all(there[name].requires_grad == value.requires_grad for name, value in own.items())


@pytest.mark.usefixtures("from_files")
@pytest.mark.parametrize(
    ("patched", "value", "message"),
    [
        (
            "allowed_memory",
            1000,
            "pruning needs about .* of memory, and .* may be used: give smaller calibration",
        ),
        ("shutil.disk_usage", None, "for temporary files, and .* has 0 MB|set TMPDIR to a larger disk"),
    ],
)
def test_what_does_not_fit_is_refused_before_the_run(
    patched: str, value: int | None, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    program, data = subject("bert")

    class Usage:
        free = 0

    result = Usage() if value is None else value
    monkeypatch.setattr(f"fxprune.calibration.memory.{patched}", lambda *given: result)
    with pytest.raises(UsageError, match=message):
        run("slim(params=0.7)", program, data)
