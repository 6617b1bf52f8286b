"""Vocabulary removal: the slim program on new ids computes what the original computes on the old ones."""

import pytest
import torch
from torch import nn

from fxprune import capture, keep_tokens
from fxprune.errors import RefusedError
from models import captured

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


class Compared(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(20, 4)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        rows: torch.Tensor = self.table(ids)
        return rows * ids.ne(0).unsqueeze(-1)


def test_ids_that_are_compared_keep_the_vocabulary_whole() -> None:
    program = capture(Compared(), (torch.randint(0, 20, (3, 5)),))
    with pytest.raises(RefusedError, match=r"ne = aten.ne.Scalar reads the ids themselves \[.*ids\.ne\(0\)"):
        keep_tokens(program, [0, 1, 2])


def test_ids_out_of_range_and_unknown_outputs_are_refused() -> None:
    with pytest.raises(RefusedError, match=r"token ids must lie in 0…98"):
        keep_tokens(captured("gpt2"), [5, 99])
    with pytest.raises(RefusedError, match="no output 'words'; outputs: logits"):
        keep_tokens(captured("gpt2"), [5], outputs=["words"])
