# mypy: disable-error-code="no-any-return"
# The result of calling a module is Any to the type checker.
"""Hand-written nets with candidates: routers and their experts, codebooks, sparse activations. Removed candidates are never chosen."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from zoo.nets_dense import BATCH, features

EXPERTS, INTO, INNER = 8, 6, 10


class Router(nn.Module):
    """The logits of experts, and their stacked weights."""

    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Linear(INTO, EXPERTS, bias=False)
        self.up = nn.Parameter(torch.randn(EXPERTS, INTO, INNER))
        self.down = nn.Parameter(torch.randn(EXPERTS, INNER, INTO))

    def expert(self, x: Tensor, number: Tensor) -> Tensor:
        """Each row [b, i] through the expert that its number [b] names."""
        return torch.bmm(torch.bmm(x[:, None], self.up[number]).relu(), self.down[number])[:, 0]

    def chosen(self, x: Tensor, weights: Tensor, numbers: Tensor) -> Tensor:
        """The weighted sum of the experts of each row; weights and numbers [b, k]."""
        each = [
            weights[:, i, None] * self.expert(x, number) for i, number in enumerate(numbers.unbind(dim=1))
        ]
        return torch.stack(each).sum(dim=0)


class TopTwo(Router):
    """Softmax, the best two, renormalised (Mixtral)."""

    def forward(self, x: Tensor) -> Tensor:
        weights, numbers = self.router(x).softmax(dim=-1).topk(2, dim=-1)
        return self.chosen(x, weights / weights.sum(dim=-1, keepdim=True), numbers)


class LimitedGroups(Router):
    """The best two of four groups of experts, then the best three within them, by sigmoid and a learned bias (DeepSeek-V3)."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.randn(EXPERTS))

    def forward(self, x: Tensor) -> Tensor:
        scores = self.router(x).sigmoid()
        wanted = scores + self.bias
        groups = wanted.view(-1, 4, EXPERTS // 4).topk(2, dim=-1)[0].sum(dim=-1)
        best = groups.topk(2, dim=-1)[1]
        mask = torch.zeros_like(groups).scatter(1, best, 1)
        mask = mask.unsqueeze(-1).expand(-1, 4, EXPERTS // 4).reshape(-1, EXPERTS)
        numbers = wanted.masked_fill(mask == 0, float("-inf")).topk(3, dim=-1)[1]
        return self.chosen(x, scores.gather(1, numbers), numbers)


class Switch(Router):
    """The best expert, dispatched by one-hot with a capacity (Switch Transformer)."""

    def forward(self, x: Tensor) -> Tensor:
        probabilities = self.router(x).softmax(dim=-1)
        dispatch = F.one_hot(probabilities.argmax(dim=-1), EXPERTS)
        dispatch = dispatch * (dispatch.cumsum(dim=0) <= 2)
        hidden = torch.einsum("be,bi,eih->beh", dispatch.to(x.dtype), x, self.up).relu()
        out = torch.einsum("beh,eho->beo", hidden, self.down)
        return (out * (probabilities * dispatch)[..., None]).sum(dim=1)


class ScatteredLogits(Router):
    """The chosen logits back in their places, all experts run, gates of zero silence the others (Llama 4)."""

    def forward(self, x: Tensor) -> Tensor:
        values, numbers = self.router(x).topk(2, dim=-1)
        gates = torch.full((BATCH, EXPERTS), float("-inf")).scatter(1, numbers, values).sigmoid()
        routed = (x.repeat(EXPERTS, 1) * gates.transpose(0, 1).reshape(-1, 1)).view(EXPERTS, -1, INTO)
        return torch.bmm(torch.bmm(routed, self.up).relu(), self.down).sum(dim=0)


class TwiceTheBest(Router):
    """The best, then the best of the others; their numbers are concatenated (Phi-MoE)."""

    def forward(self, x: Tensor) -> Tensor:
        scores = self.router(x)
        first, one = scores.max(dim=-1, keepdim=True)
        second, other = scores.scatter(-1, one, float("-inf")).max(dim=-1, keepdim=True)
        weights = torch.cat([first, second], dim=-1).sigmoid()
        return self.chosen(x, weights, torch.cat([one, other], dim=-1))


class SortedRows(Router):
    """Rows sorted by expert, counted, and the ends of the groups cumulated: nothing but sizes depends on how many experts there are."""

    def forward(self, x: Tensor) -> Tensor:
        weights, numbers = self.router(x).softmax(dim=-1).topk(2, dim=-1)
        order, rows = numbers.flatten().sort()
        load = torch.histc(order.float(), EXPERTS, 0, EXPERTS - 1)
        out = self.expert(x[rows // 2], order) * weights.flatten()[rows, None]
        share = (load.cumsum(dim=0) @ self.up.sum(dim=(1, 2))).sigmoid()
        return torch.zeros_like(x).index_add(0, rows // 2, out) * share


class CountedExperts(Router):
    """Router with arithmetic on the numbers of experts, which ties the experts to their places."""

    def forward(self, x: Tensor) -> Tensor:
        weights, numbers = self.router(x).softmax(dim=-1).topk(2, dim=-1)
        return self.chosen(x, weights * (numbers + 1), numbers)


class Codebook(nn.Module):
    """Vector quantisation: the input is replaced by the nearest of a list of codes."""

    def __init__(self) -> None:
        super().__init__()
        self.into, self.codes, self.out = nn.Linear(6, 4), nn.Embedding(12, 4), nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        z, codes = self.into(x), self.codes.weight
        distance = z.square().sum(dim=-1, keepdim=True) - 2 * z @ codes.t() + codes.square().sum(dim=-1)
        return self.out(self.codes(distance.argmin(dim=-1)))


class WinnersTakeAll(nn.Module):
    """The largest activations stay, the others become zero."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(6, 16), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        h = self.up(x)
        values, numbers = h.topk(3, dim=-1)
        return self.down(torch.zeros_like(h).scatter(1, numbers, values))


ROUTED: dict[str, Callable[[], tuple[nn.Module, dict[str, Any]]]] = {
    "experts-top-two": lambda: (TopTwo(), features()),
    "experts-limited-groups": lambda: (LimitedGroups(), features()),
    "experts-switch": lambda: (Switch(), features()),
    "experts-scattered-logits": lambda: (ScatteredLogits(), features()),
    "experts-twice-the-best": lambda: (TwiceTheBest(), features()),
    "experts-sorted-rows": lambda: (SortedRows(), features()),
    "experts-counted": lambda: (CountedExperts(), features()),
    "codebook": lambda: (Codebook(), features()),
    "winners-take-all": lambda: (WinnersTakeAll(), features()),
}
