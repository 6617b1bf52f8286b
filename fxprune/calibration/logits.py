"""Re-fitting of attention logits: queries and keys in the basis whose first directions keep most of Q·Kᵀ.

Where a head loses query and key dims, Q·Kᵀ is kept best by no choice of dims but by the best product of that rank: with the second moments
A = QᵀQ and B = KᵀK of a head, and A½·B½ = U·Σ·Vᵀ, queries Q·A⁻½·U·Σ½ and keys K·B⁻½·V·Σ½ have the same logits, and their first columns the
best ones for data whose queries and keys are independent (CORP, arXiv 2602.05243, keeps the dims and fits Q_s·(I + M)·K_sᵀ, which is one of
these products). A constant that all keys share changes no softmax over keys: B about their mean is tried as well. Weights are
multiplied by these bases; on held-back rows, what the node makes of the kept dims decides whether they are.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn

from fxprune.analysis.logits import Logits, Side
from fxprune.calibration.data import Calibration, flatten_batch, state
from fxprune.calibration.second_moments import add_product
from fxprune.ir import Program, attribute
from fxprune.ir.interpreter import Recorder
from fxprune.storage.devices import in_float64

FLOOR = 1e-6
"""Share of the mean variance that is added to each direction: those that the data do not have are no longer told apart."""

UNCHANGED = 1e-4
"""Relative squared change of a node's result up to which a new basis counts as none."""

#: name: whether a mean that all keys share is left out
CENTRED: dict[str, bool] = {"logits": False, "logits about the mean key": True}

Bases = list[tuple[Tensor, Tensor]]
"""For each group of heads, the bases of its queries and keys [d, d]."""


@dataclass
class _Moments:
    """Sums over the rows of a side, by head: of the values [heads, d], and of their products [heads, d, d]."""

    rows: int = 0
    total: Tensor = field(default_factory=lambda: torch.zeros(()))
    products: Tensor = field(default_factory=lambda: torch.zeros(()))

    def take(self, rows: Tensor) -> None:
        wide = in_float64(rows)
        self.rows += wide.shape[1]
        self.total = self.total + wide.sum(1)
        self.products = add_product(self.products, wide, wide)

    def spread(self, heads: list[int], centred: bool) -> Tensor:
        """Return the mean products of some heads [d, d], about the mean of all of them if `centred`."""
        own = torch.tensor(heads)
        mean = self.total[own].mean(0) / self.rows
        return self.products[own].mean(0) / self.rows - (torch.outer(mean, mean) if centred else 0.0)


@dataclass(frozen=True, eq=False)
class LogitsFit:
    """The basis chosen for one node (`how`, "as it was" for none), its error on held-back rows before and after, and the new tensors."""

    site: Logits
    how: str
    before: float
    after: float
    tensors: Mapping[str, nn.Parameter]


def fit_logits(
    program: Program, sites: Sequence[tuple[Logits, Tensor]], fit: Calibration, held: Calibration
) -> list[LogitsFit]:
    """Return a fit for each of (logits, what heads keep of their channels [heads, d]), in their order; the program is not changed."""
    nodes = {name for site, _ in sites for name in (site.query.value.name, site.key.value.name)}
    sums = {
        (site.node.name, side.value.name): _Moments() for site, _ in sites for side in (site.query, site.key)
    }
    for values in _runs(program, fit, nodes):
        for site, _ in sites:
            for side in (site.query, site.key):
                sums[site.node.name, side.value.name].take(side.rows(values[side.value.name]))
    found: list[dict[str, Bases]] = []
    for site, keeps in sites:
        moments = (sums[site.node.name, site.query.value.name], sums[site.node.name, site.key.value.name])
        found.append({how: _bases(site, keeps, moments, centred) for how, centred in CENTRED.items()})
    errors = _errors(program, sites, found, held)
    new: dict[str, nn.Parameter] = {}
    done: list[LogitsFit] = []
    for (site, _), bases, error in zip(sites, found, errors, strict=True):
        how = min(error, key=error.__getitem__)
        tensors = _rotated(program, site, bases[how], new) if how in bases else {}
        new |= tensors
        done.append(LogitsFit(site, how, error["as it was"], error[how], tensors))
    return done


def _runs(program: Program, data: Calibration, names: set[str]) -> Iterator[dict[str, Any]]:
    """Yield the values of these nodes for each batch."""
    for batch in data.batches:
        run = Recorder(program, names, state(program), copies=True, placed=True)
        with torch.no_grad():
            run.run_flat(flatten_batch(program, batch))
        yield {node.name: value for node, value in run.values.items()}


def _bases(site: Logits, keeps: Tensor, moments: tuple[_Moments, _Moments], centred: bool) -> Bases:
    """Return the bases of each group, in which kept dims are the directions that matter most."""
    found = []
    for queries, keys in site.groups:
        cut = [i for i in queries if not bool(keeps[i].all())]
        mask = keeps[cut[0] if cut else queries[0]]
        if bool(mask.all()):
            found.append((torch.eye(len(mask)).to(moments[0].products),) * 2)
            continue
        one, one_back = _roots(moments[0].spread(cut, centred=False))
        other, other_back = _roots(moments[1].spread(keys, centred))
        u, s, v = torch.linalg.svd(one @ other)
        order = torch.cat([mask.nonzero().flatten(), (~mask).nonzero().flatten()]).argsort()
        bases = (one_back @ u * s.sqrt(), other_back @ v.t() * s.sqrt())
        found.append((bases[0][:, order], bases[1][:, order]))
    return found


def _roots(spread: Tensor) -> tuple[Tensor, Tensor]:
    """Return the square root of a matrix of moments, and its inverse."""
    values, vectors = torch.linalg.eigh(spread)
    values = (values + FLOOR * values.mean()).clamp_min(1e-30).sqrt()
    return vectors * values @ vectors.t(), vectors / values @ vectors.t()


def _errors(
    program: Program,
    sites: Sequence[tuple[Logits, Tensor]],
    found: Sequence[Mapping[str, Bases]],
    held: Calibration,
) -> list[dict[str, float]]:
    """Return, for each site, the relative squared error of its node's result with the kept dims alone, by basis."""
    nodes = {node.name for site, _ in sites for node in site.node.all_input_nodes}
    totals: list[dict[str, float]] = [dict.fromkeys(("as it was", *CENTRED), 0.0) for _ in sites]
    squares = [0.0] * len(sites)
    for values in _runs(program, held, nodes):
        for i, (site, keeps) in enumerate(sites):
            wanted = _result(site, values, None, None)
            squares[i] += float(wanted.square().sum())
            for how in totals[i]:
                bases = found[i].get(how)
                given = _result(site, values, bases, keeps)
                totals[i][how] += float((given - wanted).square().sum())
                if bases is not None and not _close(_result(site, values, bases, None), wanted):
                    totals[i][how] = float("inf")
    return [
        {how: error / max(square, 1e-300) for how, error in total.items()}
        for total, square in zip(totals, squares, strict=True)
    ]


def _close(one: Tensor, other: Tensor) -> bool:
    return float((one - other).square().sum()) <= UNCHANGED * float(other.square().sum())


def _result(site: Logits, values: Mapping[str, Any], bases: Bases | None, keeps: Tensor | None) -> Tensor:
    """Return what the node makes of queries and keys in other bases, with zeros for removed query dims; infinite places are left out."""
    own = dict(values)
    for place, side in enumerate((site.query, site.key)):
        like = values[side.value.name]
        rows = in_float64(side.rows(like))
        if bases is not None:
            rows = rows @ _by_head(site, bases, place)
        if keeps is not None and place == 0:
            rows = rows * keeps[:, None].to(rows.device)
        own[side.value.name] = side.value_of(rows, like).to(like.device)
    args, kwargs = fx.node.map_arg((site.node.args, site.node.kwargs), lambda node: own[node.name])
    value: Tensor = site.node.target(*args, **kwargs)  # type: ignore[operator]
    return in_float64(value).nan_to_num(0.0, 0.0, 0.0)


def _by_head(site: Logits, bases: Bases, place: int) -> Tensor:
    """Return the bases of the queries (place 0) or keys by head [heads, d, d]."""
    sides = (site.query, site.key)
    found: list[Any] = [None] * len(sides[place].channels)
    for group, pair in zip(site.groups, bases, strict=True):
        for head in group[place]:
            found[head] = pair[place]
    return torch.stack(found)


def _rotated(
    program: Program, site: Logits, bases: Bases, new: Mapping[str, Tensor]
) -> dict[str, nn.Parameter]:
    """Return the parameters of both matrices, with the outputs of each head in its basis."""
    done: dict[str, nn.Parameter] = {}
    for place, side in enumerate((site.query, site.key)):
        _rotate(program, side, _by_head(site, bases, place), (new, done))
    return done


def _rotate(
    program: Program, side: Side, by_head: Tensor, known: tuple[Mapping[str, Tensor], dict[str, nn.Parameter]]
) -> None:
    matrix, (new, done) = side.matrix, known
    for name in filter(None, (matrix.weight, matrix.bias)):
        old = done.get(name, new.get(name, attribute(program.graph_module, name)))
        rows = (
            (matrix.read(old) if name == matrix.weight else old[:, None]).detach().to(torch.float64).clone()
        )
        first = {tuple(row): i for i, row in enumerate(side.channels.tolist())}
        for channels, head in first.items():
            rows[list(channels)] = by_head[head].to(rows.device).t() @ rows[list(channels)]
        done[name] = (
            matrix.write(rows, old)
            if name == matrix.weight
            else nn.Parameter(rows[:, 0].to(old.dtype), old.requires_grad)
        )
