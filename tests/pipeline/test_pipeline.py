"""Pipelines: the text prints back, and an error points at its place and lists the possibilities."""

import pytest

from fxprune import Selection, parse_pipeline
from fxprune.errors import PassError, PipelineError
from fxprune.ir import Program
from fxprune.passes import PASSES, Heads, pass_table
from fxprune.pipeline import EMPTY, Context, Pass, Pipeline, Progress
from fxprune.pipeline.parse import parse_passes
from support.models import captured


@pytest.mark.parametrize(
    "text",
    [
        "heads(ratio=0.25), ffn(ratio=0.5), fold",
        "channels(ratio=0.4, multiple_of=8)",
        "hidden(ratio=0.0)",
        "fold",
    ],
)
def test_the_text_prints_back(text: str) -> None:
    assert str(parse_pipeline(text)) == text
    assert parse_pipeline(str(parse_pipeline(text))) == parse_pipeline(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "haeds",
            (
                "no pass 'haeds' (did you mean heads?); passes: heads, ffn, experts, channels, hidden, layers, slim, lowrank, grain,"
                " blocks, group_lasso, flop, distill, recover, fill, empty, split, fold\n  haeds\n  ^"
            ),
        ),
        (
            "fold, heads(ratoi=0.5)",
            (
                "heads has no option 'ratoi'; options: ratio, score, multiple_of, uniform, roles, only, skip\n"
                "  fold, heads(ratoi=0.5)\n              ^"
            ),
        ),
        ("ffn(ratio=1.5)", "ratio must lie in [0, 1), got 1.5\n  ffn(ratio=1.5)\n      ^"),
        (
            "ffn(ratio='x')",
            "ffn: ratio must be a number or {pattern: number}, got 'x'\n  ffn(ratio='x')\n            ^",
        ),
        ("ffn", "ffn needs ratio, as in ffn(ratio=…)\n  ffn\n  ^"),
        (
            "ffn(ratio=0.5, score='best')",
            (
                "score must be one of magnitude, random, activation, taylor, fisher, obs, got 'best'"
                "\n  ffn(ratio=0.5, score='best')\n                 ^"
            ),
        ),
        (
            "ffn(ratio=__import__('os'))",
            "ffn: ratio must be a literal, a number or {pattern: number}\n  ffn(ratio=__import__('os'))\n            ^",
        ),
        ("1 + 1", "expected a pass such as heads(ratio=0.25)\n  1 + 1\n  ^"),
        ("ffn(0.5, ratio=0.5)", "ffn: option 'ratio' is given twice\n  ffn(0.5, ratio=0.5)\n           ^"),
    ],
)
def test_errors_point_at_their_place(text: str, message: str) -> None:
    with pytest.raises(PipelineError) as caught:
        parse_pipeline(text)
    assert str(caught.value) == message


def test_pass_names_are_unique_and_documented() -> None:
    assert [each.name for each in PASSES] == [
        "heads",
        "ffn",
        "experts",
        "channels",
        "hidden",
        "layers",
        "slim",
        "lowrank",
        "grain",
        "blocks",
        "group_lasso",
        "flop",
        "distill",
        "recover",
        "fill",
        "empty",
        "split",
        "fold",
    ]
    assert all(each.__doc__ for each in PASSES)
    assert list(pass_table())[:1] == [Heads.name]


def test_a_pipeline_reports_its_steps_and_one_selection_in_original_indices() -> None:
    program, seen = captured("bert"), list[Progress]()
    text = "heads(ratio=0.5), ffn(ratio=0.25), ffn(ratio=0.5), channels(ratio=0.5)"
    result = parse_pipeline(text).run(program, Context(observe=seen.append))
    assert [step.axes for step in result.steps] == [2, 2, 2, 0]
    assert result.steps[3].note == (
        "found nothing to remove: it takes exact axes of role channels; the graph has 2 ffn (pass ffn), 2 heads (pass heads), 2 qk, 2 v"
    )
    assert [progress.stage for progress in seen] == text.split(", ")
    kept = {len(result.selection[name]) for name in result.selection if name.endswith("ffn")}
    assert kept == {24}
    assert result.steps[-1].parameters[1] == result.program.parameter_count()


class Failing(Pass):
    """Ask for an axis that is not there."""

    name = "failing"

    def plan(self, program: Program, context: Context = EMPTY) -> Selection:
        return Selection({"nowhere": [0]})


def test_a_failing_pass_says_which_and_after_what() -> None:
    pipeline: Pipeline = parse_passes("fold, failing", {**pass_table(), "failing": Failing})
    with pytest.raises(PassError, match="failing, after fold: no axis 'nowhere' in this program"):
        pipeline.run(captured("bert"))
