"""Matching: values of both programs are found by structure, and those that lost units are compared at the others."""

from __future__ import annotations

import torch
from torch import nn

from fxprune import Program, capture, parse_pipeline
from fxprune.ir import run_example
from fxprune.ir.interpreter import Recorder
from fxprune.pipeline import Context
from fxprune.training.recovery.matching import matched_values
from support.recovering import AUTO, NETS, data, trained
from support.slimmable import layer


def value(program: Program, name: str) -> torch.Tensor:
    recorder = Recorder(program, [name])
    with torch.no_grad():
        recorder.run_flat(program.flat_inputs())
    found: torch.Tensor = next(iter(recorder.values.values()))
    return found


def test_values_that_lost_nothing_are_matched_without_a_selection() -> None:
    program, _ = layer()
    slim = parse_pipeline("ffn(ratio=0.5)").run(program).program
    found = matched_values(program, slim)
    assert [each.name for each in found] == ["embedding", "add", "add_1"]
    assert all(value(slim, each.name).shape == value(program, each.name).shape for each in found)
    assert torch.allclose(found[1].cut(value(program, "add")), value(slim, "add"), atol=1e-6)


def test_values_that_lost_units_are_matched_at_the_others() -> None:
    whole = trained("unet")
    found = parse_pipeline(NETS["unet"][3]).run(whole)
    assert matched_values(whole, found.program) == ()
    matches = matched_values(whole, found.program, found.selection)
    assert len(matches) >= 2
    for each in matches:
        assert each.cut(value(whole, each.name)).shape == value(found.program, each.name).shape


def test_units_that_stay_are_the_right_ones() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 2)).eval()
    program = capture(net, (torch.randn(3, 4),), dynamic_shapes=({0: AUTO},))
    found = parse_pipeline("ffn(ratio=0.5)").run(program)
    first = matched_values(program, found.program, found.selection)[0]
    assert torch.allclose(first.cut(value(program, first.name)), value(found.program, first.name), atol=1e-6)


def test_at_most_so_many_evenly_spread() -> None:
    net = nn.Sequential(*(nn.Linear(4, 4) for _ in range(9))).eval()
    program = capture(net, (torch.randn(3, 4),))
    every = [each.name for each in matched_values(program, program, most=99)]
    assert len(every) == 8
    assert [each.name for each in matched_values(program, program, most=3)] == [every[1], every[4], every[7]]


def test_the_pipeline_knows_what_led_to_a_program() -> None:
    steps = parse_pipeline("channels(ratio=0.5), recover(steps=3, rate=0.001)")
    found = steps.run(trained("unet"), Context(data=data("unet")))
    assert len(found.steps[1].details["recovery"]["matched"]) >= 2
    assert all(bool(each.isfinite().all()) for each in run_example(found.program))
