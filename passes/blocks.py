"""Block pruning (arXiv 2109.04838): remove blocks of weights while a student trains with a teacher, by movement or Taylor scores."""

from __future__ import annotations

import reprlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn

from fxprune.analysis import Analysis, analyze
from fxprune.dims import BlockSizes, coordinates
from fxprune.errors import RefusedError, UsageError
from fxprune.files import about, parse_json, read_text
from fxprune.gates import Gate, Gated, find_blocked_weights
from fxprune.gates.blocked_weights import BlockedWeight, grid
from fxprune.gates.insert import gate
from fxprune.ir import Program
from fxprune.pipeline import Scoped, Training, require
from fxprune.training import Cubic, Losses, Pruner, Share
from fxprune.training.gate_budgets import GateBudget, KeepOpen, Threshold
from fxprune.training.gate_scores import GateScore, Movement, Random, Taylor
from fxprune.training.schedules import Rising

HEADS, NEURONS = ("heads", "qk", "v"), ("ffn",)


@dataclass(frozen=True)
class Variant:
    """Block sizes in attention and in feed-forward blocks, as (along the heads or neurons, across); None: whole neurons.

    Size 0 is a whole head along, and everything across.
    """

    help: str
    attention: Callable[[Blocks], tuple[int, int]]
    dense: Callable[[Blocks], tuple[int, int]] | None


def _square(options: Blocks) -> tuple[int, int]:
    return options.rows, options.columns


def _head(options: Blocks) -> tuple[int, int]:
    return 0, 0


def _one(options: Blocks) -> tuple[int, int]:
    return 1, 1


#: name: what it cuts into blocks
VARIANTS: dict[str, Variant] = {
    "block": Variant("blocks of rows × columns everywhere", _square, _square),
    "hybrid": Variant("blocks in attention, whole neurons in feed-forward blocks", _square, None),
    "struct": Variant("whole heads of each matrix of attention, whole neurons", _head, None),
    "unstructured": Variant("single weights: what blocks cost in quality", _one, _one),
}

#: name: what a block's worth is known by
_METHODS: dict[str, Callable[[Blocks, dict[Gate, float]], GateScore]] = {
    "movement": lambda own, weight: Movement(own.rate, _regulariser(own), weight),
    "taylor": lambda own, weight: Taylor(),
    "random": lambda own, weight: Random(own.seed or 0),
}


def _regulariser(own: Blocks) -> Callable[[float], float]:
    """Return the strength of the paper's regulariser as a function of progress: rising as the threshold does, or 0 with a density."""
    return (lambda progress: 0.0) if own.density else Rising(own.strength, own.start, own.end)


@dataclass(frozen=True)
class Blocks(Scoped, Training):
    """Remove blocks of weights, and neurons, while a student is taught; what is empty then leaves for good (movement; `fxprune train`).

    The paper controls sparsity by `strength`, which does not determine the density in advance; with `density`, the best blocks stay, as
    many as fit.
    """

    name: ClassVar[str] = "blocks"
    hidden: ClassVar[float] = 0.0

    method: str = "movement"  #: what stays: movement, taylor (for short runs) or random
    variant: str = "hybrid"  #: block, hybrid, struct or unstructured
    density: float = 0.0  #: the share of the gated parameters that stays; 0: as strength makes it
    strength: float = 10.0  #: how hard all scores are pulled down (2.5 to 40 in the paper)
    threshold: float = 0.1  #: blocks stay whose sigmoid(score) lies above it
    rows: int = 32  #: of a block, along heads and neurons
    columns: int = 32  #: of a block, the other way
    start: float = 0.05  #: the progress at which blocks begin to leave
    end: float = 0.5  #: and at which all that do may have left
    rate: float = 1e-2  #: how fast scores learn
    attention: float = 1.0  #: the weight of attention in what pulls
    dense: float = 1.0  #: and of feed-forward blocks
    temperature: float = 2.0  #: of the logits that are taught
    hard: float = 0.1  #: how much labels count beside them
    rewind: str = ""  #: the folder of an earlier run, whose heads stay
    seed: int | None = None  #: of random scores

    def __post_init__(self) -> None:
        require(self.method in _METHODS, f"method must be one of {', '.join(_METHODS)}, got {self.method!r}")
        require(
            self.variant in VARIANTS, f"variant must be one of {', '.join(VARIANTS)}, got {self.variant!r}"
        )
        require(0 <= self.density <= 1, f"density must lie in (0, 1], or be 0, got {self.density:g}")
        require(
            self.density > 0 or self.method == "movement",
            f"density must be given with method={self.method!r}: only movement has a strength",
        )
        require(min(self.rows, self.columns) >= 1, "rows and columns of a block must be at least 1")
        require(0 <= self.hard <= 1, f"hard must lie in [0, 1], got {self.hard:g}")
        super().__post_init__()

    def gated(self, program: Program) -> Gated:
        """Return the program with gates on blocks of its matrices of heads and neurons, or on neurons; RefusedError where it has none."""
        analysis, variant = analyze(program), VARIANTS[self.variant]
        scope = self.scope(analysis)
        heads = scope.blocked(HEADS)
        taken = {site.matrix.weight for site in heads}
        neurons = [site for site in scope.blocked(NEURONS) if site.matrix.weight not in taken]
        grids = {site.matrix.weight: _grid(analysis, site, variant.attention(self)) for site in heads}
        units: list[str] = []
        if variant.dense is None:
            units = [a.name for a in scope.axes() if a.role in NEURONS and a.exact and not a.choices]
        else:
            grids |= {site.matrix.weight: grid(analysis, site, *variant.dense(self)) for site in neurons}
        if not grids and not units:
            raise RefusedError(
                "no matrix of heads or neurons with weights of its own in this program: see `fxprune explain`"
            )
        return gate(program, units, blocks=grids, biases=True)

    def pruner(self, gated: Gated, module: nn.Module) -> Pruner:
        """Return the pruner that closes and reopens the gates of `module` during training."""
        roles = self._kinds(gated)
        own = {gate: {"attention": self.attention, "dense": self.dense}[kind] for gate, kind in roles.items()}
        kinds = [*roles.values()]
        weight = {gate: own[gate] / kinds.count(roles[gate]) / len(set(kinds)) for gate in own}
        return Pruner(gated, module, self._budget(gated), _METHODS[self.method](self, weight))

    def _kinds(self, gated: Gated) -> dict[Gate, str]:
        """Return the kind of each gate: attention, or dense (a feed-forward block)."""
        heads = {site.matrix.weight for site in find_blocked_weights(analyze(gated.base), HEADS)}
        return {gate: "attention" if gate.of in heads else "dense" for gate in gated.gates}

    def _budget(self, gated: Gated) -> GateBudget:
        if self.density:
            budget: GateBudget = Share(Cubic(self.density, self.start, self.end), regrow=True)
        else:
            budget = Threshold(Rising(self.threshold, self.start, self.end))
        return KeepOpen(budget, _kept_blocks(gated, self.rewind)) if self.rewind else budget

    def loss(self, pruner: Pruner, losses: Losses) -> Tensor:
        """Return the training loss: that of the logits."""
        return losses.logits


def _grid(analysis: Analysis, site: BlockedWeight, sizes: tuple[int, int]) -> tuple[BlockSizes, BlockSizes]:
    """Return the block sizes of an attention matrix; 0 along is a whole head."""
    along, across = sizes
    return grid(analysis, site, along or _head_size(analysis, site), across)


def _head_size(analysis: Analysis, site: BlockedWeight) -> int:
    """Return how many positions along a site belong to one head: the length of the shortest run, or the size of a dim without heads."""
    dim = analysis.flow.dims[analysis.program.reads()[site.matrix.weight]][site.along]
    heads = [coordinates(dim, axis.leaf) for axis in analysis.axes if axis.role == "heads"]
    runs = [torch.unique_consecutive(units, return_counts=True) for units in heads]
    lengths = [int(counts[units >= 0].min()) for units, counts in runs if bool((units >= 0).any())]
    return min(lengths, default=int(dim.size))


def _kept_blocks(gated: Gated, folder: str) -> dict[Gate, Tensor]:
    """Return the blocks of the heads that an earlier run kept (read from its train.json), booleans in the shape of each gate."""
    heads = _kept_heads(Path(folder) / "train.json")
    analysis = analyze(gated.base)
    nodes = gated.base.reads()
    found = {}
    for own in gated.gates:
        table = torch.zeros(gated.program.tensors()[own.name].shape, dtype=torch.bool)
        for name, units in heads.items():
            leaf = analysis.axis(name).leaf
            for place, sizes in enumerate((own.grid.rows, own.grid.columns) if own.grid else ()):
                units_at = coordinates(analysis.flow.dims[nodes[own.of]][place], leaf)
                blocks = _touched(torch.isin(units_at, torch.tensor(units)), sizes)
                table |= blocks[:, None] if place == 0 else blocks
        found[own] = table
    return found


def _kept_heads(path: Path) -> dict[str, list[int]]:
    with about(path):
        text = read_text(path, "run", UsageError)
        heads = parse_json(text, ("fxprune.train/1", "heads", dict), "run of fxprune train", UsageError)[
            "heads"
        ]
        for name, units in heads.items():
            if not isinstance(units, list) or not all(
                type(unit) is int and 0 <= unit < 2**31 for unit in units
            ):
                raise UsageError(f'"heads" must hold lists of numbers, got {name}: {reprlib.repr(units)}')
    return dict(heads)


def _touched(places: Tensor, sizes: tuple[int, ...]) -> Tensor:
    """Return which blocks of these sizes contain a True of `places`, booleans."""
    return torch.stack([part.any() for part in places.split(list(sizes))])
