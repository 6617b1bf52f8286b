"""Scale: analysis is fast and linear, and requires no weights; `make scale` prints the table of figures."""

import pytest

from support import scale


@pytest.mark.slow
def test_bert_base_is_analysed_in_a_fifth_of_a_second_and_time_grows_with_nodes() -> None:
    small, large = scale.apart("bert", 12), scale.apart("bert", 96)
    assert small["analyze_s"] < 0.2
    assert large["nodes"] > 7 * small["nodes"]
    assert large["analyze_s"] / large["nodes"] < 2 * small["analyze_s"] / small["nodes"]


@pytest.mark.slow
def test_seven_billion_parameters_are_planned_in_seconds_and_without_weights() -> None:
    row = scale.apart("llama", 32)
    assert row["parameters"] > 6.7e9
    assert row["total_s"] < 20
    assert row["peak_gb"] < 1
