# mypy: disable-error-code="no-any-return"
# The result of calling a module is Any to the type checker.
"""Slim: it reaches its budget, removes idle units, keeps those that the data require, and refuses the impossible in a sentence."""

from __future__ import annotations

import json
import re
from functools import cache

import pytest
import torch
from torch import Tensor, nn

from fxprune import Selection, apply, capture, parse_pipeline, verify
from fxprune.calibration import check_calibration
from fxprune.errors import PipelineError, RefusedError, UsageError, VerifyError
from fxprune.ir import copy_graph, difference, rebuild, run_example
from fxprune.passes import Slim
from fxprune.pipeline import Context, Outcome
from support.slimmable import AUTO, Layer, Subject, kept, layer, share_of, slim, subject

PROMISES = (("params", 0.6), ("flops", 0.5), ("bytes", 0.7))


@pytest.mark.parametrize(("kind", "share"), PROMISES)
@pytest.mark.parametrize("name", ["bert", "gpt2", "llama", "convs"])
def test_what_is_promised_is_reached_and_proved(name: str, kind: str, share: float) -> None:
    program, data = subject(name)
    outcome = slim((program, data), **{kind: share})
    assert 0.8 * share <= share_of(program, outcome.program, kind) <= share
    assert share_of(program, outcome.program, kind) == pytest.approx(outcome.details["share"])
    assert all(bool(value.isfinite().all()) for value in run_example(outcome.program))
    plain = verify(program, apply(program, outcome.selection), outcome.selection)
    assert plain.relative <= plain.bar == 1e-5
    assert set(plain.exact) == set(outcome.selection)
    fitted = verify(program, outcome.program, outcome.selection, outcome.refitted)
    assert fitted.relative <= 1e-5 < fitted.change
    assert len(outcome.refitted) > 0
    json.dumps(outcome.details)


@cache
def without_idle() -> tuple[Outcome, list[str]]:
    """The layer with the idle branch, cut, and what was said meanwhile."""
    said: list[str] = []
    return slim(layer(idle=True), flops=0.5, observe=lambda progress: said.append(progress.text)), said


def test_a_branch_that_does_nothing_goes_as_a_whole() -> None:
    program, _ = layer(idle=True)
    outcome, _ = without_idle()
    assert outcome.selection.removed == ("branch.ffn",)
    assert "ffn" not in outcome.selection
    assert not [name for name in outcome.program.tensors() if name.startswith(("up", "down", "second"))]
    only = apply(program, Selection(removed=outcome.selection.removed))
    assert difference(run_example(only), run_example(program)) <= 1e-6
    proved = verify(program, outcome.program, outcome.selection, outcome.refitted)
    assert proved.relative <= 1e-5


def test_details_say_what_each_site_keeps() -> None:
    outcome, _ = without_idle()
    rows = {row["site"]: row for row in outcome.details["sites"]}
    assert set(rows) == {"heads", "ffn"}
    assert (rows["ffn"]["removed"], rows["ffn"]["axes"], rows["ffn"]["cost"]) == ("branch.ffn", {}, 0.0)
    whole = {"heads": 2, "qk": 4, "v": 4}
    assert rows["heads"]["axes"] == {
        name: [kept(outcome).get(name, size), size] for name, size in whole.items()
    }
    assert "removed" not in rows["heads"]


def test_details_say_what_other_budgets_would_have_cost() -> None:
    details = without_idle()[0].details
    shares, errors = ([point[name] for point in details["frontier"]] for name in ("share", "error"))
    assert (details["budget"], details["target"]) == ("flops", 0.5)
    assert shares == sorted(shares)
    assert errors == sorted(errors, reverse=True)
    assert shares[0] < details["share"] <= 0.5 < shares[-1] <= 1 + 1e-9
    assert details["error_is"] == "squared difference of the outputs, relative to their squares"


def test_it_says_what_it_does() -> None:
    _, said = without_idle()
    text = "\n".join(said)
    assert said[0] == "scoring 4 axes by obs"
    assert "costs of heads (1 of 2)\ncosts of ffn (2 of 2)" in text
    assert re.search(r"\nplan 1: predicted 0\.\d{3} of the original, measuring\n", text)
    assert said[-1].startswith("re-fitting matrix ")


def test_without_layers_no_branch_goes() -> None:
    program, data = layer(idle=True)
    outcome = slim((program, data), flops=0.75, layers=False)
    assert outcome.selection.removed == ()
    assert kept(outcome)["ffn"] < 12
    assert difference(run_example(outcome.program), run_example(program)) <= 1e-6


class Doubled(nn.Module):
    """The last twelve neurons are the first twelve, read otherwise."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(6, 24), nn.Linear(24, 5)
        with torch.no_grad():
            self.up.weight[12:], self.up.bias[12:] = self.up.weight[:12], self.up.bias[:12]

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.up(x).relu())


@cache
def doubled() -> Subject:
    torch.manual_seed(0)
    program = capture(Doubled(), (torch.randn(3, 6),), dynamic_shapes=({0: AUTO},))
    return program, check_calibration(program, [torch.randn(64, 6) for _ in range(8)])


def moved(made: Subject, outcome: Outcome) -> float:
    """The root of the relative squared error on inputs that nobody has seen."""
    torch.manual_seed(7)
    x = torch.randn(500, 6)
    before, after = made[0](x), outcome.program(x)
    return float((after - before).norm() / before.norm())


def test_of_equal_neurons_one_stays_and_takes_over_what_both_gave() -> None:
    outcome = slim(doubled(), flops=0.52)
    assert sorted(place % 12 for place in outcome.selection["ffn"]) == list(range(12))
    assert moved(doubled(), outcome) <= 1.5e-3
    plain = slim(doubled(), flops=0.52, repair="none")
    assert plain.selection["ffn"] == outcome.selection["ffn"]
    assert plain.refitted == ()
    assert moved(doubled(), plain) > 0.3


class TwoWays(nn.Module):
    """Of twelve neurons the first six write the first output, the others the second, which is ten times larger."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(6, 12), nn.Linear(12, 2, bias=False)
        with torch.no_grad():
            self.down.weight[0, 6:], self.down.weight[1, :6] = 0.0, 0.0
            self.down.weight[1] *= 10

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.up(x).tanh())


def test_a_loss_says_which_outputs_matter() -> None:
    torch.manual_seed(0)
    program = capture(TwoWays(), (torch.randn(3, 6),), dynamic_shapes=({0: AUTO},))
    made = program, check_calibration(program, [torch.randn(16, 6) for _ in range(6)])

    def first_output(outputs: tuple[Tensor], batch: dict[str, Tensor]) -> Tensor:
        return (outputs[0][:, 0] - batch["x"].sum(1)).square().mean()

    without, with_loss = (
        slim(made, flops=0.6, **more).selection["ffn"] for more in ({}, {"loss": first_output})
    )
    assert len({6, 7, 8, 9, 10, 11}.intersection(without)) >= 5
    assert len({0, 1, 2, 3, 4, 5}.intersection(with_loss)) >= 5


def test_magnitude_without_repair_needs_no_data_and_cuts_uniformly() -> None:
    outcome = slim((layer(idle=True)[0], None), flops=0.6, score="magnitude", repair="none")  # type: ignore[arg-type]
    assert outcome.selection.removed == ()
    assert kept(outcome) == {"heads": 1, "ffn": 8}
    assert outcome.refitted == ()
    assert "refits" not in outcome.details
    assert share_of(layer(idle=True)[0], outcome.program, "flops") <= 0.6


@pytest.mark.parametrize("options", [{}, {"score": "magnitude"}, {"score": "fisher", "repair": "none"}])
def test_data_that_are_needed_are_asked_for_in_a_sentence(options: dict[str, str]) -> None:
    with pytest.raises(
        UsageError, match=r"needs calibration data: give --calibration FILE, or Context\(data=…\)"
    ):
        Slim(flops=0.5, **options).run(layer()[0])  # type: ignore[arg-type]
    text = ", ".join(f"{name}={value!r}" for name, value in {"flops": 0.5, **options}.items())
    with pytest.raises(UsageError, match=re.escape(f"slim({text}) needs")):
        parse_pipeline(f"slim({text})").run(layer()[0])


def test_the_stream_is_cut_only_where_it_may_be() -> None:
    with pytest.raises(
        RefusedError, match=r"params=0\.15 can't be reached: .*; ask for more, or allow hidden=True$"
    ):
        slim(layer(), params=0.15)
    program, _ = layer()
    outcome = slim(layer(), params=0.15, hidden=True)
    width = kept(outcome)["hidden"]
    assert width < 8
    assert outcome.program.tensors()["embed.weight"].shape == (11, width)
    assert share_of(program, outcome.program, "params") <= 0.15
    proved = verify(program, outcome.program, outcome.selection, outcome.refitted)
    assert "hidden" in {*proved.exact, *proved.inexact}
    assert proved.relative <= 1e-5


class Showing(Layer):
    """Gives its neurons, too."""

    def forward(self, ids: Tensor) -> dict[str, Tensor]:  # type: ignore[override]
        x = self.attended(ids)
        neurons = self.up(self.second(x)).relu()
        return {"logits": self.head(x + self.down(neurons)), "neurons": neurons}


@cache
def showing() -> tuple[Subject, Outcome]:
    torch.manual_seed(0)
    program = capture(Showing(idle=False).eval(), (torch.randint(0, 11, (4, 7)),), free_outputs=["neurons"])
    made = program, check_calibration(program, [torch.randint(0, 11, (4, 7)) for _ in range(6)])
    return made, slim(made, flops=0.4)


def test_outputs_that_may_shrink_do_so_beside_heads_that_keep_their_own_dims() -> None:
    (program, _), outcome = showing()
    assert outcome.selection.within
    neurons = kept(outcome)["ffn"]
    assert neurons < 12
    assert outcome.program(*program.args)["neurons"].shape == (4, 7, neurons)
    proved = verify(program, outcome.program, outcome.selection, outcome.refitted)
    assert proved.relative <= 1e-5 < proved.change < 2.0


def test_the_first_wrong_node_is_named_although_heads_keep_their_own_dims() -> None:
    (program, _), outcome = showing()
    plain = apply(program, outcome.selection)
    wrong = rebuild(plain, copy_graph(plain), {"o.weight": plain.tensors()["o.weight"] * 1.1})
    with pytest.raises(VerifyError, match=r"o_weight = o\.weight: its value differs by 0"):
        verify(program, wrong, outcome.selection)


def test_a_program_without_axes_is_refused() -> None:
    program = capture(nn.Linear(4, 2), (torch.randn(3, 4),))
    with pytest.raises(
        RefusedError, match="no axis of this program can be decided by cost: see `fxprune explain`"
    ):
        Slim(params=0.5, score="magnitude", repair="none").run(program)


def test_uniform_cuts_that_are_too_small_say_what_they_leave() -> None:
    """Not what cutting inside of heads could leave, which no uniform plan does."""
    with pytest.raises(RefusedError) as caught:
        slim(layer(), flops=0.2, score="magnitude", repair="none")
    left = float(str(caught.value).partition("may go, ")[2].partition(" ")[0])
    smallest = {"heads": [0], "ffn": [0]}
    program, _ = layer()
    assert left == pytest.approx(share_of(program, apply(program, Selection(smallest)), "flops"), abs=1e-3)
    assert left > 0.2


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ("", "say one of latency, flops, params, bytes, as in slim(latency=0.5)"),
        ("latency=0.5, params=0.5", "say one of latency, flops, params, bytes, as in slim(latency=0.5)"),
        ("latency=0.0", "say one of latency, flops, params, bytes, as in slim(latency=0.5)"),
        ("latency=1", "latency is the share that may be left, between 0 and 1, got 1"),
        ("flops=-0.5", "flops is the share that may be left, between 0 and 1, got -0.5"),
        ("bytes=2.5", "bytes is the share that may be left, between 0 and 1, got 2.5"),
        ("params=0.5, score='best'", "score must be one of magnitude, random, activation, taylor, fisher, obs, got 'best'"),
        ("params=0.5, repair='some'", "repair must be one of none, mean, readers, all, got 'some'"),
        ("params=0.5, distance='far'", "distance must be one of square, divergence, got 'far'"),
        ("params=0.5, batch=0", "batch must be at least 1, got 0"),
        ("params=0.5, length=-1", "length must be at least 1, got -1"),
        ("params=0.5, threads=0", "threads must be at least 1, got 0"),
        ("latency='fast'", "slim: latency must be a number, got 'fast'"),
        ("flops=0.5, hidden=1", "slim: hidden must be True or False, got 1"),
        ("flops=0.5, batch=1.5", "slim: batch must be an integer, got 1.5"),
        ("flops=0.5, data=None", "slim has no option 'data'; options: latency, flops, params, bytes, score, repair,"),
        ("flops=0.5, cache='x'", "slim has no option 'cache'"),
    ],
)  # fmt: skip
def test_wrong_options_are_a_sentence(options: str, sentence: str) -> None:
    with pytest.raises(PipelineError, match=re.escape(sentence)):
        parse_pipeline(f"slim({options})" if options else "slim")


@pytest.mark.parametrize(
    "text",
    [
        "slim(latency=0.5)",
        "slim(flops=0.25, score='fisher', repair='none')",
        "slim(params=0.9, distance='divergence', hidden=True, layers=False)",
        "slim(latency=0.3, batch=1, length=64, threads=4, runtime='openvino', optimization='extended')",
        "heads(ratio=0.5), slim(bytes=0.7, repair='mean'), fold",
    ],
)
def test_the_text_of_the_pass_is_printed_back(text: str) -> None:
    assert str(parse_pipeline(text)) == text
    assert parse_pipeline(str(parse_pipeline(text))) == parse_pipeline(text)


def test_rounds_are_cuts_with_recoveries_between_them() -> None:
    whole = parse_pipeline("slim(params=0.4, rounds=2, between=0.02)")
    assert str(whole.expanded()) == (
        "slim(params=0.6324555320336759, whole=True), recover(minutes=0.02), slim(params=0.4, whole=True)"
    )
    program, data = subject("convs")
    found = whole.run(program, Context(data=data))
    assert [len(step.details) > 0 for step in found.steps] == [True, True, True]
    assert found.program.parameter_count() <= 0.4 * program.parameter_count() < found.steps[0].parameters[1]
    assert found.proof.relative <= found.proof.bar


def test_a_share_of_the_whole_that_is_reached_removes_nothing_more() -> None:
    program, data = subject("convs")
    found = parse_pipeline("slim(params=0.5), slim(params=0.7, whole=True)").run(program, Context(data=data))
    assert found.steps[1].parameters[0] == found.steps[1].parameters[1]
    assert found.steps[1].details == {"share": 1.0}
