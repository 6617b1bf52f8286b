"""Pages of `fxprune.tools.benchmarks.ablation`: docs/results/grain.md, blocks.md and flop.md, each written from its file of figures."""

from collections.abc import Callable, Mapping, Sequence
from statistics import mean, mode
from typing import Any, TypeAlias

from fxprune.tools.reports import report
from fxprune.tools.reports.layers_report import spread
from fxprune.tools.reports.report import Grid

_Entries = Sequence[Mapping[str, Any]]

_HEAD = """# GRAIN on a 6-layer model

Students of all-MiniLM-L6-v2 (6 layers, 12 heads of 32 dims, 1,536 neurons) lose neurons, and query/key and value dims of each head,
while a teacher trains them: `fxprune train`'s `grain` beside what it is made of, without one part at a time. Density is the share of the
parameters of what has gates (attention, feed-forward blocks and pooler) that is left. The figures lie in `docs/results/grain.jsonl` and
come from

```
python -m fxprune.tools.benchmarks.ablation CoLA SST-2 --out docs/results/grain.jsonl --device cuda
python -m fxprune.tools.benchmarks.ablation CoLA SST-2 --out docs/results/grain.jsonl --device cuda --densities 0.1 \\
    --variants grain-long random-long heads-long
python -m fxprune.tools.benchmarks.ablation CoLA SST-2 --out docs/results/grain.jsonl --measure
```"""


CURVES = """## Does what was captured train as the original does?

`python -m fxprune.tools.benchmarks.training_curves --out docs/results/curves.svg` trains MiniLM and what was captured from it on 3,000
rows of SST-2, two epochs, three seeds, the same rows in the same order. With one seed both draw the same dropout (that inside of fused
attention included, which `capture(…, training=True)` reads from the model in training mode), and all 564 losses are equal to the last bit;
the seeds of the original lie 0.024 apart (standard deviation of means over 10 steps). Accuracy on dev: 0.822 (0.817–0.826), both.

![Losses of the original and of what was captured, three seeds: the curves cover each other](curves.svg)"""


_BLOCKS = """# Blocks on a 6-layer model

Students of all-MiniLM-L6-v2 (6 layers, 12 heads of 32 dims, 1,536 neurons) lose blocks of weights while a teacher trains them: movement
pruning in four variants and filled, and reweighted group lasso. Density is the share of the weights of attention and feed-forward blocks
that gates leave open; the best are left open, as many as there is room for (the paper's own way, a strength of the pull, reaches no
density that could be told beforehand). What is empty leaves for good; what stays zero inside of dense matrices is in the column "zeros".
The figures lie in `docs/results/blocks.jsonl` and come from

```
python -m fxprune.tools.benchmarks.ablation CoLA SST-2 --study blocks --out docs/results/blocks.jsonl --densities 0.25 --device cuda
python -m fxprune.tools.benchmarks.ablation CoLA SST-2 --study blocks --out docs/results/blocks.jsonl --measure
```"""

RANKS = """# FLOP on a 6-layer model

Students of all-MiniLM-L6-v2 whose matrices of attention and feed-forward blocks are factors. With FLOP, ranks leave while a teacher trains
the student; beside it, the SVD of every matrix at one share of its break-even rank: of the weights that training begins with, or of those
of the trained teacher. Density is the share of the matrices' parameters that is left; factors that are not measured to be faster became
matrices again. The figures lie in `docs/results/flop.jsonl` and come from

```
python -m fxprune.tools.benchmarks.ablation CoLA SST-2 --study ranks --out docs/results/flop.jsonl --densities 0.5 --device cuda
python -m fxprune.tools.benchmarks.ablation CoLA SST-2 --study ranks --out docs/results/flop.jsonl --measure
```"""

_Left: TypeAlias = Callable[[_Entries, _Entries], str]
"""Function from (records of training, records of measuring) to a cell."""


def _heads(students: _Entries, measured: _Entries) -> str:
    return f"{mean(float(sum(map(len, entry['heads']))) for entry in students):.0f}"


def _whole_heads(students: _Entries, measured: _Entries) -> str:
    return f"{mean(entry['heads'] for entry in measured):.0f}" if measured else "–"


def _zeros(students: _Entries, measured: _Entries) -> str:
    return f"{mean(entry['zeros'] for entry in measured):.0%}" if measured else "–"


def _ranks(students: _Entries, measured: _Entries) -> str:
    found = [sum(entry["ranks"]) for entry in students if "ranks" in entry]
    return f"{mean(found):,.0f}" if found else "–"


def _reached(students: _Entries, measured: _Entries) -> str:
    found = [entry["reached"] for entry in students if "ranks" in entry]
    return spread(found) if found else "–"


#: study: (text before its tables, text after them, columns of its own)
_STUDIES: dict[str, tuple[str, str, Mapping[str, _Left]]] = {
    "grain": (_HEAD, CURVES, {"heads left": _heads}),
    "blocks": (_BLOCKS, "", {"heads left": _whole_heads, "zeros": _zeros}),
    "ranks": (RANKS, "", {"density reached": _reached, "ranks left": _ranks}),
}


def render_ablation(study: str, entries: _Entries, variants: Mapping[str, str], note: str) -> str:
    """The Markdown page of a study; `variants` are their descriptions by name, `note` is a sentence about the run."""
    head, tail, own = _STUDIES[study]
    parts = [head, note] if note else [head]
    for task in sorted({str(entry["task"]) for entry in entries}):
        parts += _task(task, [entry for entry in entries if entry["task"] == task], variants, own)
    parts += [tail] if tail else []
    machine = next((entry for entry in entries if "machine" in entry), None)
    return "\n\n".join([*parts, report.where(machine)] if machine else parts) + "\n"


def _task(task: str, entries: _Entries, variants: Mapping[str, str], own: Mapping[str, _Left]) -> list[str]:
    teacher = next(entry for entry in entries if entry["variant"] == "teacher")
    students = [entry for entry in entries if "metric" in entry and "density" in entry]
    recipes = [entry["recipe"] for entry in students] or [teacher["recipe"]]
    recipe, epochs = recipes[0], mode(each["epochs"] for each in recipes)
    devices = " and ".join(sorted({each.get("device") or "cpu" for each in recipes}))
    timed = [entry for entry in entries if "speedup" in entry]
    rows = [
        (f"{density:.0%}", told, *_cells(found, _of(timed, name, density), teacher["metric"], own))
        for density in sorted({entry["density"] for entry in students}, reverse=True)
        for name, told in variants.items()
        if (found := _of(students, name, density))
    ]
    judged = ("density", "variant", "seeds", teacher["measure"], "of the teacher's")
    columns = (*judged, *own, "parameters", "speedup", "file")
    text = (
        f"{teacher['rows'][0]:,} rows to train on, {teacher['rows'][1]:,} to be judged on. "
        f"The teacher, {teacher['recipe']['epochs']} epochs: {teacher['measure']} {teacher['metric']:.3f}. "
        f"Students: {epochs} epochs, learning rate {recipe['learning_rate']:g}, "
        f"batches of {recipe['batch_size']}, {recipe['precision']}, on {devices}. "
        "Mean (lowest–highest) over seeds."
    )
    table = report.markdown_table(Grid("", columns, tuple(rows), 6 + len(own)))
    return [f"## {task}: {teacher['measure']} on dev", text, table]


def _of(entries: _Entries, variant: str, density: float) -> list[Mapping[str, Any]]:
    return [entry for entry in entries if entry["variant"] == variant and entry["density"] == density]


def _cells(
    students: _Entries, measured: _Entries, teacher: float, own: Mapping[str, _Left]
) -> tuple[str, ...]:
    metrics = [entry["metric"] for entry in students]
    return (
        str(len(students)),
        spread(metrics),
        f"{mean(metrics) / teacher:.0%}",
        *(cell(students, measured) for cell in own.values()),
        f"{mean(e['parameters'] for e in measured) / 1e6:.1f} M" if measured else "–",
        f"{mean(e['speedup'] for e in measured):.2f}×" if measured else "–",
        f"{mean(e['file_bytes'] for e in measured) / 1e6:.1f} MB" if measured else "–",
    )
