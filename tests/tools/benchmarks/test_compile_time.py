"""The page of compile times: ratios over torch's own share, models that torch can't write, and exponents of growth."""

from fxprune.tools.benchmarks.compile_time.measure import measured
from fxprune.tools.benchmarks.compile_time.models import layer_stack
from fxprune.tools.benchmarks.compile_time.page import ratio, render_compile_time

SECONDS = {
    "export": 1.0,
    "onnx": 3.0,
    "capture": 1.5,
    "analyze": 0.1,
    "regions": 0.2,
    "half": 0.3,
    "bypass": 0.4,
    "file": 4.2,
}
MODEL = {"name": "BERT", "dynamic": True, "seconds": SECONDS, "failed": "", "nodes": 12}


def test_a_model_is_told_by_what_is_added_to_torch() -> None:
    text = render_compile_time([MODEL])
    assert "| BERT | 12 | 1.00 | 3.00 | 0.50 | 0.10 | 0.20 | 0.30 | 0.40 | 1.20 | 1.50 |" in text
    assert "**1 of 1 models that torch itself can write" in text


def test_a_model_that_torch_cannot_write_has_no_ratio() -> None:
    less = {**MODEL, "seconds": {name: value for name, value in SECONDS.items() if name != "onnx"}}
    assert ratio(less) is None
    assert "| torch writes no file |" in render_compile_time([less])


def test_growth_is_an_exponent_from_the_second_number_of_layers() -> None:
    steps = dict.fromkeys(("analyze", "regions", "half", "bypass"), 1.0)
    rows = [
        {
            "layers": n,
            "dynamic": True,
            "seconds": {**steps, "regions": n / 10},
            "calls": {**steps, "regions": n * n},
        }
        for n in (12, 48, 192)
    ]
    assert "| any | regions | 1.20 | 4.80 | 19.20 | 1.00 | 2.00 |" in render_compile_time(rows)


def test_all_stages_of_a_small_stack_are_measured() -> None:
    record = measured(*layer_stack(2), True)
    assert (record["failed"], set(record["seconds"])) == ("", set(SECONDS))
    assert record["nodes"] == 90
