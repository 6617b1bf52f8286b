"""Report: the rows of the proof say what it compares with, and name the axes that show nothing."""

from fxprune.tools.reports.run_report import proof_rows
from support import drawn


def test_axes_whose_removal_moves_nothing_are_named() -> None:
    verdict = {**drawn.REPORT["verdict"], "inputs": 4, "moves": {"a.ffn": 0.0, "b.ffn": 0.5, "c.ffn": 0.0}}
    rows = proof_rows({**drawn.REPORT, "verdict": verdict}).rows
    assert rows[0][2].startswith("largest relative difference over 1 exact axes and 4 inputs; pruning itself")
    assert rows[1] == (
        "axes that show nothing",
        "2",
        "their removed units move no output on these inputs: a.ffn, c.ffn",
    )


def test_what_is_never_chosen_is_said() -> None:
    plain = proof_rows(drawn.REPORT).rows
    assert plain[0][0] == "pruned against zeroed original"
    more = {"chosen": ["a.experts"], "against": "original with units zeroed or never chosen"}
    rows = proof_rows({**drawn.REPORT, "verdict": {**drawn.REPORT["verdict"], **more}}).rows
    assert rows[0][0] == "pruned against original with units zeroed or never chosen"
    assert rows[1] == (
        "axes never chosen",
        "1",
        "removed units can't be chosen, and the others share what was theirs: a.experts",
    )
