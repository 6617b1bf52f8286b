"""Vocabulary removal: the slim program on new ids computes the same as the original on the old ones."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from expecttest import assert_expected_inline
from torch import Tensor, nn

from fxprune import TokenIds, Vocabulary, capture, keep_tokens, show, verify_tokens
from fxprune.errors import ExportError, RefusedError, SelectionError, VerifyError
from support.models import captured
from support.texts import Net

KEPT = list(range(1, 99, 3))


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_logits_are_those_of_the_kept_tokens(name: str) -> None:
    program = captured(name, dynamic=True)
    found = keep_tokens(program, KEPT, outputs=["logits"])
    old = torch.tensor(KEPT)[torch.randint(0, len(KEPT), (4, 9))]
    mask = torch.ones_like(old)
    ours = found.program(input_ids=found.translate(old), attention_mask=mask).logits
    theirs = program(input_ids=old, attention_mask=mask).logits[..., KEPT]
    assert torch.allclose(ours, theirs, atol=1e-6)
    assert found.ids == tuple(KEPT)
    assert found.program.parameter_count() < program.parameter_count()


def test_an_encoder_keeps_its_outputs() -> None:
    program = captured("bert", dynamic=True)
    found = keep_tokens(program, KEPT, table="embeddings.word_embeddings.weight")
    old = torch.tensor(KEPT)[torch.randint(0, len(KEPT), (4, 9))]
    mask = torch.ones_like(old)
    ours = found.program(input_ids=found.translate(old), attention_mask=mask)[0]
    assert torch.equal(ours, program(input_ids=old, attention_mask=mask)[0])


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_tokens_are_proved_and_a_wrong_map_is_found(name: str) -> None:
    program = captured(name, dynamic=True)
    found = keep_tokens(program, KEPT, outputs=["logits"])
    assert verify_tokens(program, found) <= 1e-5
    assert found.outputs == ("logits",)
    wrong = replace(found, ids=(*(one + 1 for one in KEPT[:-1]), 98))
    with pytest.raises(VerifyError, match="with 33 of 99 tokens the outputs differ by"):
        verify_tokens(program, wrong)


def test_a_map_is_saved_and_loaded_and_never_overwritten_unasked(tmp_path: Path) -> None:
    found = keep_tokens(captured("gpt2"), KEPT)
    found.save(tmp_path / "token_ids.json")
    loaded = Vocabulary.load(tmp_path / "token_ids.json")
    assert (loaded.ids, loaded.table, loaded.size) == (tuple(KEPT), found.table, 99)
    assert loaded.to_json() == found.to_json()
    with pytest.raises(ExportError, match=r"token_ids.json exists; pass overwrite=True"):
        found.save(tmp_path / "token_ids.json")
    found.save(tmp_path / "token_ids.json", overwrite=True)
    with pytest.raises(SelectionError, match="ascending, distinct and below the size 99"):
        TokenIds.from_json(found.to_json().replace("[1, 4,", "[4, 1,"))
    with pytest.raises(SelectionError, match="can't read the token ids"):
        TokenIds.load(tmp_path / "absent.json")


COMPARISONS: dict[str, Callable[[Tensor], Tensor]] = {
    "padding": lambda ids: ids.ne(3),
    "an id that goes": lambda ids: ids == 4,
    "as another integer": lambda ids: ids.to(torch.int32).transpose(0, 1).eq(11).transpose(0, 1),
    "order": lambda ids: (ids > 5) & (ids <= 12.5) | (ids < 4) & (ids >= 3),
    "a table of ids": lambda ids: (ids[..., None] == torch.tensor([7, 8, 15])).any(-1),
    "a tensor on the left": lambda ids: torch.tensor(8) < ids,
    "each other": lambda ids: ids == ids.flip(0),
    "the place of the largest": lambda ids: torch.arange(5) <= ids.argmax(-1, keepdim=True),
    "shape": lambda ids: torch.ones_like(ids).cumsum(1) > 2,
}


@pytest.mark.parametrize(
    "dynamic", [None, ({0: torch.export.Dim.AUTO, 1: torch.export.Dim.AUTO},)], ids=["static", "dynamic"]
)
@pytest.mark.parametrize("name", COMPARISONS)
def test_ids_that_are_compared_are_renumbered(name: str, dynamic: Any) -> None:
    """The oracle is the module itself, on the old ids."""
    if name == "the place of the largest" and dynamic:
        dynamic = ({0: torch.export.Dim.AUTO},)
    net = Net(
        lambda net, ids: net.table(ids) * COMPARISONS[name](ids).unsqueeze(-1), table=nn.Embedding(20, 4)
    )
    program = capture(net, (torch.randint(0, 20, (3, 5)),), dynamic_shapes=dynamic)
    kept = [1, 3, 5, 7, 11, 13, 15, 19]
    found = keep_tokens(program, kept)
    ids = torch.tensor(kept)[torch.randint(0, 8, (3, 5), generator=torch.Generator().manual_seed(0))]
    assert torch.equal(found.program(found.translate(ids)), net(ids))
    assert verify_tokens(program, found) == 0
    assert found.program.parameter_count() == 32
    assert found.program.tensors().keys() >= {"table.weight"}


class Computed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(20, 4)

    def forward(self, ids: Tensor) -> Tensor:
        rows: Tensor = self.table(ids)
        return rows * (ids * 2).unsqueeze(-1)


def test_ids_that_are_computed_with_keep_the_vocabulary_whole() -> None:
    program = capture(Computed(), (torch.randint(0, 20, (3, 5)),))
    with pytest.raises(RefusedError, match=r"mul = aten.mul.Tensor reads the ids themselves \[.*ids \* 2"):
        keep_tokens(program, [0, 1, 2])


def test_ids_that_are_compared_with_another_input_keep_the_vocabulary_whole() -> None:
    net = Net(lambda net, ids, pad: net.table(ids) * ids.ne(pad).unsqueeze(-1), table=nn.Embedding(20, 4))
    program = capture(net, (torch.randint(0, 20, (3, 5)), torch.tensor(0)))
    with pytest.raises(RefusedError, match=r"ne = aten.ne.Tensor reads the ids themselves"):
        keep_tokens(program, [0, 1, 2])


class Shaped(nn.Module):
    """Ids that are moved, and whose shape other values have."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.kinds = nn.Embedding(20, 4), nn.Embedding(2, 4)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        ids = ids.transpose(0, 1)[:, :2].expand(-1, 2)
        rows: torch.Tensor = self.table(ids) + self.kinds(torch.zeros_like(ids))
        return rows


def test_ids_may_be_moved_and_lend_their_shape() -> None:
    program = capture(Shaped(), (torch.tensor([[3, 7, 11], [7, 3, 2]]),))
    slim = keep_tokens(program, [2, 3, 7, 11], table="table.weight")
    ids = torch.tensor([[2, 11, 7], [3, 3, 2]])
    assert torch.equal(slim.program(slim.translate(ids)), program(ids))


def test_ids_out_of_range_and_unknown_outputs_are_refused() -> None:
    with pytest.raises(RefusedError, match=r"token ids must lie in 0…98"):
        keep_tokens(captured("gpt2"), [5, 99])
    with pytest.raises(RefusedError, match="no output 'words'; outputs: logits"):
        keep_tokens(captured("gpt2"), [5], outputs=["words"])


def test_before_and_after() -> None:
    """Of 20 tokens 5 stay, in the table and in the head that is tied to it."""
    net = Net(
        lambda net, ids: nn.functional.linear(net.table(ids), net.table.weight), table=nn.Embedding(20, 8)
    )
    program = capture(net, (torch.zeros(3, 5, dtype=torch.long),))
    assert_expected_inline(
        show(program),
        """\
ids: (!3, !5)
table.weight: (!20, table.rank:8)
embedding = embedding(table.weight, ids) -> (!3, !5, table.rank:8)
linear = linear(embedding, table.weight) -> (!3, !5, !20)
return linear""",
    )
    assert_expected_inline(
        show(keep_tokens(program, [0, 3, 4, 7, 19]).program),
        """\
ids: (!3, !5)
table.weight: (!5, table.rank:8)
embedding = embedding(table.weight, ids) -> (!3, !5, table.rank:8)
linear = linear(embedding, table.weight) -> (!3, !5, !5)
return linear""",
    )


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('"size": 99', '"size": true', "below the size True"),
        ('"size": 99', f'"size": {"9" * 5000}', "a number of 5000 digits"),
        ('"size": 99', f'"size": {"[" * 100_000}', "nested too deeply"),
        ('"size": 99', '"size": 99, "size": 99', "the key 'size' occurs twice"),
        ('"inputs": ["', '"inputs": 3, "other": ["', '"inputs" and "outputs" lists of names'),
        ('"table": "', '"table": 5, "other": "', '"table" must be a name'),
    ],
)
def test_a_field_of_another_form_is_named(old: str, new: str, said: str) -> None:
    text = TokenIds((1, 4), "table", 99, ("ids",), ()).to_json()
    assert old in text
    with pytest.raises(SelectionError, match=said):
        TokenIds.from_json(text.replace(old, new))
