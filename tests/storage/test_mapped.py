"""Mapped tensors: pages that are let go come back from the file, and nothing that was written into them is lost."""

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from fxprune.storage import adopt, is_mapped, let_go, letting_go, to_disk

MEBIBYTE = 1 << 20
COUNT = 4 * MEBIBYTE

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/statm").exists(), reason="resident memory is read from /proc"
)


def resident(tensor: Tensor) -> int:
    """Bytes of a tensor that are in memory, by Linux's list of pages."""
    start, bytes_of = tensor.data_ptr(), tensor.numel() * tensor.element_size()
    with Path("/proc/self/pagemap").open("rb") as file:
        file.seek(start // 4096 * 8)
        pages = file.read(bytes_of // 4096 * 8)
    return sum(pages[i + 7] >> 7 for i in range(0, len(pages), 8)) * 4096


def test_a_tensor_on_disk_has_the_same_values_and_can_be_let_go() -> None:
    value = torch.arange(COUNT, dtype=torch.float32)
    there = to_disk(value)
    assert is_mapped(there)
    assert not is_mapped(value)
    assert torch.equal(there, value)
    assert resident(there) == 4 * COUNT
    let_go(there)
    assert resident(there) == 0
    assert float(there[12345]) == 12345.0


def test_views_and_parameters_of_a_mapped_tensor_are_mapped_too() -> None:
    there = to_disk(nn.Parameter(torch.ones(512, 512), requires_grad=False))
    assert isinstance(there, nn.Parameter)
    assert not there.requires_grad
    assert is_mapped(there.detach()[1:])
    assert is_mapped(there.t())
    assert not is_mapped(there.detach().clone())


def test_memory_that_replaces_a_mapped_tensor_is_not_let_go() -> None:
    for _ in range(20):
        there = to_disk(torch.ones(COUNT))
        del there
        other = torch.full((COUNT,), 2.0)
        assert not is_mapped(other)
        let_go(other)
        assert float(other.sum()) == 2.0 * COUNT


def test_of_a_part_its_own_pages_alone_are_let_go() -> None:
    there = to_disk(torch.arange(COUNT, dtype=torch.float32))
    assert float(there.sum()) > 0
    let_go(there[: COUNT // 2])
    assert resident(there) == 2 * COUNT


@pytest.mark.parametrize("value", [torch.ones(10), torch.ones(512, 512, device="meta"), torch.ones(0)])
def test_small_tensors_and_those_without_memory_stay_as_they_are(value: Tensor) -> None:
    assert to_disk(value) is value
    assert not is_mapped(value)


def _loaded(path: Path) -> Tensor:
    save_file({"w": torch.arange(COUNT, dtype=torch.float32)}, path)
    with safe_open(path, "pt") as file:
        return file.get_tensor("w")  # type: ignore[no-any-return]


def test_a_view_of_a_checkpoint_is_adopted(tmp_path: Path) -> None:
    loaded, own = _loaded(tmp_path / "model.safetensors"), torch.ones(COUNT)
    assert adopt([loaded, own]) == 1
    assert float(loaded.sum()) > 0
    let_go(loaded)
    assert resident(loaded) < 8192  # the first and the last page are shared with what lies beside
    assert float(loaded[12345]) == 12345.0
    assert not is_mapped(own)


def test_what_was_written_into_a_view_of_a_checkpoint_is_kept(tmp_path: Path) -> None:
    loaded = _loaded(tmp_path / "model.safetensors")
    adopt([loaded])
    loaded[54321] = -1.0  # as a training step of the module's owner does
    let_go(loaded)
    assert float(loaded[54321]) == -1.0


def test_a_module_lets_go_after_each_call() -> None:
    layer = nn.Linear(1024, 1024, bias=False)
    layer.weight = to_disk(layer.weight)
    with letting_go():
        layer(torch.ones(1, 1024))
    assert resident(layer.weight.detach()) == 0
    layer(torch.ones(1, 1024))
    assert resident(layer.weight.detach()) == 4 * MEBIBYTE
