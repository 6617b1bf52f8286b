# mypy: disable-error-code="no-any-return"
# The result of calling a module is Any to the type checker.
"""Cost tables: the cost of a size is that of the shrunk part, and sites that compute the same are measured once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

from fxprune import Program, Selection, analyze, capture, shrink
from fxprune.analysis.sites import Site, find_sites
from fxprune.cost import BUDGETS
from fxprune.cost.budgets import Key, counting_meter
from fxprune.cost.count import count_flops
from fxprune.cost.subgraph import part, values_at
from fxprune.cost.table import CostTable, Curve, SiteCost
from fxprune.errors import UsageError
from fxprune.ir import Point
from support.models import captured
from zoo.nets import NETS, build

WIDTH, HEADS, SIZE, NEURONS = 12, 3, 4, 20
BATCH, LENGTH = 2, 6
POINT: Point = {"batch": BATCH, "length": LENGTH}
Wanted = Mapping[Key, tuple[str, Callable[[], Program]]]


class Layer(nn.Module):
    """Attention and a feed-forward net of 20 neurons (more than are measured one by one)."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.norm, self.up, self.down = (
            nn.LayerNorm(WIDTH),
            nn.Linear(WIDTH, NEURONS),
            nn.Linear(NEURONS, WIDTH),
        )

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (p(x).unflatten(-1, (HEADS, SIZE)).transpose(1, 2) for p in (self.q, self.k, self.v))
        attended = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x = self.norm(x + self.o(attended))
        return x + self.down(self.up(x).relu())


@cache
def layer() -> Program:
    torch.manual_seed(0)
    return capture(Layer().eval(), (torch.randn(3, 5, WIDTH),), dynamic_shapes=({0: Dim.AUTO, 1: Dim.AUTO},))


def found_in(program: Program) -> dict[str, Site]:
    """The sites by the role of their main axes, the last of each."""
    return {site.main.role: site for site in find_sites(analyze(program))}


def table(program: Program, name: str, point: Point | None = POINT) -> CostTable:
    return CostTable(analyze(program), counting_meter(name), point)


def direct(program: Program, site: Site, sizes: tuple[int, ...], name: str) -> float:
    """The shrunk part itself, counted."""
    selection = {
        axis.name: list(range(size)) for axis, size in zip(site.axes, sizes, strict=True) if size < axis.size
    }
    slim = shrink(program, Selection(selection))
    count = BUDGETS[name].count
    assert count is not None
    return count(part(slim, site.nodes, values_at(slim, POINT)).program(), None)


def attention_cost(name: str, heads: int, qk: int, v: int) -> int:
    """By hand."""
    inner = 2 * qk + 2 * v  # of q and k, of v and the output projection
    if name == "params":
        return heads * (inner * WIDTH + 2 * qk + v) + WIDTH
    tokens = BATCH * LENGTH
    return 2 * tokens * heads * (inner * WIDTH + LENGTH * (qk + v))


def ffn_cost(name: str, neurons: int) -> int:
    """By hand."""
    return neurons * (2 * WIDTH + 1) + WIDTH if name == "params" else 4 * BATCH * LENGTH * WIDTH * neurons


@pytest.mark.parametrize("name", ["params", "flops"])
def test_heads_and_their_dims_cost_what_the_shrunk_attention_costs(name: str) -> None:
    """Without an error: parameters and operations are proportional to heads × dims."""
    site = found_in(layer())["heads"]
    assert [axis.role for axis in site.axes] == ["heads", "qk", "v"]
    found = table(layer(), name).of(site)
    for heads in (1, 2, 3):
        for qk in (1, 2, 3, 4):
            for v in (1, 2, 3, 4):
                assert found.at(heads, (qk, v)) == pytest.approx(attention_cost(name, heads, qk, v))
    for sizes in ((3, 4, 4), (1, 4, 4), (3, 1, 4), (3, 4, 2), (2, 1, 3)):
        assert direct(layer(), site, sizes, name) == attention_cost(name, *sizes)


@pytest.mark.parametrize("name", ["params", "flops"])
def test_neurons_cost_what_the_shrunk_ffn_costs(name: str) -> None:
    site = found_in(layer())["ffn"]
    found = table(layer(), name).of(site)
    assert found.main.sizes == (1, 2, 5, 8, 10, 12, 15, 18, 20)
    assert [found.at(size, ()) for size in range(1, 21)] == pytest.approx(
        [ffn_cost(name, size) for size in range(1, 21)]
    )
    assert found.whole == ffn_cost(name, NEURONS)
    for size in (1, 11, 19):
        assert direct(layer(), site, (size,), name) == ffn_cost(name, size)


class Stream(nn.Module):
    """Of the convolution in the middle, the channels are read and written: its weights grow with their square."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.middle, self.head = nn.Conv2d(2, 24, 1), nn.Conv2d(24, 24, 3), nn.Conv2d(24, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x)
        return self.head(h[:, :, 1:-1, 1:-1] + self.middle(h))


def test_what_grows_with_a_square_is_overstated_by_less_than_half_a_percent() -> None:
    program = capture(Stream(), (torch.randn(2, 2, 5, 5),))
    (site,) = find_sites(analyze(program))
    found = table(program, "params", None).of(site)
    exact = {size: 9 * size**2 + (3 + 1 + 3) * size + 3 for size in range(1, 25)}
    errors = {size: found.at(size, ()) - exact[size] for size in exact}
    assert [size for size, error in errors.items() if error == 0] == [1, *range(3, 25, 3)]
    assert min(errors.values()) == 0
    assert max(errors.values()) == pytest.approx(9 * 1 * 2)  # two thirds of the way between knots 3 apart
    assert max(errors.values()) / exact[24] < 0.005
    assert direct(program, site, (7,), "params") == exact[7]


def test_what_inner_axes_save_they_save_in_each_unit_that_stays_and_never_all() -> None:
    main, inner = Curve((1, 2, 4), (10.0, 18.0, 40.0)), Curve((1, 4), (28.0, 40.0))
    assert SiteCost(main, (inner,), 1).at(2, [1]) == 18.0 - 12.0 / 2
    assert SiteCost(main, (inner,), 1).at(3, [2]) == 29.0 - 8.0 * 3 / 4
    assert SiteCost(main, (inner, inner, inner, inner), 1).at(4, [1, 1, 1, 1]) == pytest.approx(2.0)
    assert main.at(3) == 29.0


@pytest.mark.parametrize("name", ["bert", "gpt2"])
def test_disjoint_sites_and_the_rest_are_the_whole(name: str) -> None:
    program = captured(name, dynamic=True)
    found = find_sites(analyze(program))
    operations = list[int]()

    def both(wanted: Wanted) -> dict[Key, float]:
        programs = {key: make() for key, (_, make) in wanted.items()}
        operations.extend(count_flops(made) for made in programs.values())
        return {key: made.parameter_count() for key, made in programs.items()}

    costs = CostTable(analyze(program), both, POINT)
    calls = {node.name for node in program.graph.nodes if node.op == "call_function"}
    parts = [site.nodes for site in found]
    parts.append(frozenset(calls.difference(*parts)))
    assert sum(map(len, parts)) == len(calls)
    assert sum(map(costs.whole, parts)) == program.parameter_count()
    assert sum(operations) == count_flops(program, POINT)


class Counting:
    """A meter that makes nothing: the cost is a function of the size, whatever the axis."""

    def __init__(self, of_size: Callable[[int], float]) -> None:
        self.of_size = of_size
        self.calls: list[list[Key]] = []
        self.signatures: list[str] = []

    def __call__(self, wanted: Wanted) -> dict[Key, float]:
        self.calls.append(list(wanted))
        self.signatures += [signature for signature, _ in wanted.values()]
        return {key: self.of_size(key[1]) for key in wanted}


def test_sites_that_compute_the_same_are_measured_once() -> None:
    for name, kinds in (("bert", 2), ("gpt2", 2), ("llama", 3)):
        meter = Counting(float)
        analysis = analyze(captured(name, dynamic=True))
        costs = CostTable(analysis, meter, POINT)
        found = [costs.of(site) for site in find_sites(analysis)]
        assert len(meter.calls) == kinds
        assert len(found) == 2 * kinds
        assert [one is other for one, other in zip(found[:kinds], found[kinds:], strict=True)] == [
            True
        ] * kinds
        assert len(set(meter.signatures)) == len(meter.signatures)


def test_the_whole_comes_first_and_no_size_is_asked_for_twice() -> None:
    meter = Counting(float)
    costs = CostTable(analyze(layer()), meter, POINT)
    for role in ("heads", "ffn"):
        costs.of(found_in(layer())[role])
    heads, ffn = meter.calls
    assert heads == [(0, 3), (0, 1), (0, 2), (1, 1), (1, 2), (1, 3), (2, 1), (2, 2), (2, 3)]
    assert ffn == [(0, 20), *((0, size) for size in (1, 2, 5, 8, 10, 12, 15, 18))]


def test_the_same_part_at_another_size_is_measured_anew() -> None:
    names = []
    for point in (POINT, {"batch": 2, "length": 7}):
        meter = Counting(float)
        CostTable(analyze(layer()), meter, point).of(found_in(layer())["ffn"])
        names += meter.signatures
    assert len(set(names)) == len(names) == 18


@cache
def wide(neurons: int) -> Program:
    return capture(
        nn.Sequential(nn.Linear(3, neurons), nn.ReLU(), nn.Linear(neurons, 2)), (torch.randn(2, 3),)
    )


def measured(neurons: int, of_size: Callable[[int], float], odd: bool = True) -> SiteCost:
    (site,) = find_sites(analyze(wide(neurons)))
    return CostTable(analyze(wide(neurons)), Counting(of_size), None, odd).of(site)


@pytest.mark.parametrize("neurons", [128, 200, 1100, 3072, 4304])
@pytest.mark.parametrize("multiple", [1, 2, 4, 8, 16, 32])
def test_widths_are_multiples_of_what_does_not_hurt(neurons: int, multiple: int) -> None:
    def milliseconds(size: int) -> float:
        return (5 + size) * (1.1 if size % multiple else 1.0)

    found = measured(neurons, milliseconds)
    assert found.multiple_of == multiple
    assert found.main.sizes == measured(neurons, milliseconds, odd=False).main.sizes
    assert measured(neurons, milliseconds, odd=False).multiple_of == 1


@pytest.mark.parametrize("neurons", [40, 48, 64, 96])
@pytest.mark.parametrize("multiple", [1, 2, 4, 8])
def test_narrow_axes_have_widths_that_hurt_too(neurons: int, multiple: int) -> None:
    """Channels of a depthwise convolution, three times as slow at odd widths."""
    assert (
        measured(neurons, lambda size: (5 + size) * (3.0 if size % multiple else 1.0)).multiple_of == multiple
    )


@pytest.mark.parametrize("neurons", [5, 16, 17, 20, 32, 48, 64, 70, 127])
def test_narrow_axes_may_have_any_width(neurons: int) -> None:
    """And whatever is measured of them is in the table."""
    found = measured(neurons, lambda size: 1000 + size**1.5)
    assert found.multiple_of == 1
    assert found.main.sizes[0] == 1
    assert found.main.sizes[-1] == neurons
    assert len(found.main.sizes) == {5: 5, 16: 16, 32: 5, 48: 7}.get(neurons, 9)
    assert found.at(neurons, ()) == pytest.approx(1000 + neurons**1.5)


def test_a_noise_of_three_percent_hurts_nobody() -> None:
    assert measured(256, lambda size: size * (1.03 if size % 2 else 1.0)).multiple_of == 1
    assert measured(256, lambda size: size * (1.06 if size % 2 else 1.0)).multiple_of == 2


#: nets whose sizes depend on values: they have no costs
SIZED_BY_VALUES = {"looped-mixture", "masked-nodes", "repeats"}


@pytest.mark.parametrize("name", sorted(NETS.keys() - SIZED_BY_VALUES))
def test_what_a_cut_does_not_change_need_not_be_computed_again(name: str) -> None:
    """The part of each cut site is the same with the values of before as with those of a whole run."""
    model, inputs = build(name)
    program = capture(model, (), inputs)
    costs = CostTable(analyze(program), counting_meter("params"), None)
    for site in find_sites(costs.analysis):
        for axis in site.axes:
            slim = shrink(program, Selection({axis.name: tuple(range(max(1, axis.least)))}))
            whole = part(slim, site.nodes, values_at(slim, None))
            assert (
                part(slim, site.nodes, values_at(slim, None, costs._outside(site))).signature
                == whole.signature
            )


@pytest.mark.parametrize("name", sorted(SIZED_BY_VALUES))
def test_a_program_whose_sizes_depend_on_values_has_no_costs(name: str) -> None:
    model, inputs = build(name)
    with pytest.raises(UsageError, match="the program can't run at its example inputs: DynamicOutputShape"):
        CostTable(analyze(capture(model, (), inputs)), counting_meter("params"), None)
