"""Calibration files: read the data that `--calibration` names.

FILE.npz, FILE.safetensors   arrays by input name, whose first dimension is rows
py:PACKAGE.MODULE:NAME       a function that returns an iterable of batches: mappings of input names to tensors, or tensors
any other file               UTF-8 text, one a line, for the tokenizer of the model's folder
"""

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from safetensors.torch import load_file
from torch import Tensor

from fxprune.calibration import Calibration, check_calibration
from fxprune.calibration.data import Batch, batched_by_length
from fxprune.errors import UsageError
from fxprune.files import about
from fxprune.ir import Program, first_line, is_free, quiet
from fxprune.tools.inputs.huggingface import folder_of, has_tokenizer, load_tokenizer
from fxprune.tools.inputs.loaded import (
    Loaded,
    call_named,
    call_or_refuse,
    failed_call,
    find_named,
)

DATA = "FILE.npz, FILE.safetensors or py:PACKAGE.MODULE:FUNCTION"
_FORMS = f"a text file (one text a line), {DATA}"
_DATA = "the calibration data"
_MOST = 32  # rows per batch: enough to keep a processor busy, few enough for any memory
CHUNK = 256  # texts tokenized at a time, so that hardly more of a large file is tokenized than is asked for

Tokens = Mapping[str, Sequence[int]]


def read_calibration(text: str, program: Program, loaded: Loaded, rows: int, length: int) -> Calibration:
    """Return the calibration data that an option names, at most `rows` rows (0: all), texts cut to `length` tokens.

    UsageError describes a fault of the option, the file, or the data.
    """
    if text.startswith("py:"):
        return check_calibration(program, _called(text), rows)
    path = _file(text)
    with about(path):
        if path.suffix.lower() in _ARRAYS:
            arrays = _ARRAYS[path.suffix.lower()](path)
            return check_calibration(program, _pieces(program, arrays, path), rows)
        if length < 1:
            raise UsageError(f"calibration texts must be cut to at least 1 token, got {length}")
        tokenizer = _tokenizer(path, loaded.name, loaded.trusted)
        return check_calibration(program, _texts(path, program, tokenizer, rows, length), rows)


def check_source(text: str, model: str, trust: bool = False) -> None:
    """Raise UsageError, before there is a program, where an option names no data that can be read for a MODEL; no function is called."""
    if text.startswith("py:"):
        find_named(text, _DATA)
        return
    path = _file(text)
    _ARRAYS.get(path.suffix.lower(), _lines)(path)
    if path.suffix.lower() not in _ARRAYS:
        _tokenizer(path, model, trust)


def _file(text: str) -> Path:
    if not Path(text).is_file():
        raise UsageError(f"there is no file {text} to calibrate on; expected {_FORMS}")
    return Path(text)


def _called(text: str) -> Any:
    returned = call_named(text, _DATA)
    # Tensors and mappings are iterable, too; they are passed on whole, to be refused.
    single = isinstance(returned, (Tensor, np.ndarray, Mapping, str)) or not isinstance(returned, Iterable)
    return returned if single else _guarded(text, returned)


def _guarded(text: str, batches: Iterable[Any]) -> Iterator[Any]:
    """Yield the batches of a function; UsageError where its generator fails at one of them."""
    try:
        yield from batches
    except Exception as error:
        raise failed_call(text, error) from error


def _npz(path: Path) -> dict[str, Any]:
    try:
        # numpy leaves a file open that it can't read
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except Exception as error:
        raise UsageError(
            f"{path} can't be read as arrays of numbers that numpy.savez wrote; pickled objects are not loaded:"
            f" {first_line(error)}"
        ) from error


def _safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except Exception as error:
        raise UsageError(f"{path} can't be read as a .safetensors file: {first_line(error)}") from error


#: suffix: the function that reads arrays, by input name, from such a file
_ARRAYS: Mapping[str, Callable[[Path], Mapping[str, Any]]] = MappingProxyType(
    {".npz": _npz, ".safetensors": _safetensors}
)


@dataclass(frozen=True)
class _Rows:
    """Batching of rows: at most `step` in a batch (exactly so many where that is `fixed`), along dimension 0 of these inputs."""

    step: int
    fixed: bool
    inputs: tuple[str, ...]


def _rows(program: Program) -> _Rows:
    """Return the batching along all inputs whose dimension 0 is dynamic, or else along those with as many rows as the first input."""
    free = tuple(name for name, dims in program.free_dims().items() if 0 in dims)
    if free:
        return _Rows(_MOST, fixed=False, inputs=free)
    heights = {name: shape[0] for name, shape in _shapes(program).items() if shape}
    step = next(iter(heights.values()), 1)
    return _Rows(max(step, 1), fixed=True, inputs=tuple(n for n, size in heights.items() if size == step))


def _shapes(program: Program) -> dict[str, tuple[Any, ...]]:
    """Return the sizes of every tensor input, numbers or symbols."""
    nodes = {node.name: node for node in program.placeholders()}
    return {name: tuple(nodes[name].meta["val"].shape) for name in program.input_names()}


def _pieces(program: Program, arrays: Mapping[str, Any], path: Path) -> Iterator[dict[str, Any]]:
    """Yield the rows of arrays in batches; an array without rows goes into each of them whole.

    Where the size of a batch is fixed, rows that do not fill one are dropped; fewer rows than one batch are left to the check of sizes.
    """
    rows = _rows(program)
    cut = {name: array for name, array in arrays.items() if name in rows.inputs and array.ndim}
    counts = {name: len(array) for name, array in cut.items()}
    if len(set(counts.values())) > 1:
        told = ", ".join(f"{name} {count}" for name, count in counts.items())
        raise UsageError(
            f"{path}: the first dimension of arrays is their rows, and must be equal, got {told}"
        )
    count = max(counts.values(), default=1)
    used = count - count % rows.step if rows.fixed and count > rows.step else count
    for first in range(0, used, rows.step):
        yield {**arrays, **{name: array[first : first + rows.step] for name, array in cut.items()}}


def _texts(path: Path, program: Program, tokenizer: Any, most: int, length: int) -> list[Batch]:
    """Return the lines of a file in batches of equal length: the first `most` usable ones (0, or a fixed batch size: all)."""
    rows, exact = _rows(program), _fixed_length(program)
    found = _tokenised(_lines(path), program, tokenizer, exact or length)
    fitting = (row for row in found if not exact or len(row["input_ids"]) == exact)
    # The rows that fill batches of a fixed size are known only when all are tokenized.
    used = list(itertools.islice(fitting, None if rows.fixed else most or None))
    if not used:
        why = f"has {exact} tokens, the fixed length of the model" if exact else "is left by the tokenizer"
        raise UsageError(f"no text in {path} {why}; give {'longer' if exact else 'other'} texts")
    batches = batched_by_length(used, rows.step)
    full = [batch for batch in batches if not rows.fixed or len(batch["input_ids"]) == rows.step]
    if not full:
        raise UsageError(
            f"the model takes exactly {rows.step} texts of equal length at once, and {path} does not have so many;"
            " give more texts, or capture the model with a dynamic batch"
        )
    return full


def _lines(path: Path) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except OSError as error:
        raise UsageError(f"can't read the calibration data {path}: {error}") from None
    except UnicodeDecodeError:
        raise UsageError(f"{path} is no text in UTF-8; expected {_FORMS}") from None
    texts = [line.strip() for line in lines if line.strip()]
    if not texts:
        raise UsageError(f"{path} holds no text to calibrate on; expected one text a line")
    return texts


def _fixed_length(program: Program) -> int:
    """Return the length of token rows where it is fixed, 0 where it is dynamic."""
    shape = _shapes(program).get("input_ids", ())
    return 0 if len(shape) != 2 or is_free(shape[1]) else int(shape[1])


def _tokenizer(path: Path, model: str, trust: bool) -> Any:
    bare = UsageError(
        f"{path} is text, and {model} has no tokenizer's files beside the weights; add them, or give data"
        f" that need none: {DATA}"
    )
    folder, _ = folder_of(model)
    if folder and not has_tokenizer(folder):
        raise bare
    try:
        found = load_tokenizer(model, trust)
    except UsageError as error:
        raise UsageError(
            f"{path} is text, which needs the tokenizer of the model: {error}; data without one: {DATA}"
        ) from error
    # From some files transformers makes one with an empty vocabulary (T5's: a space), to which all text is unknown.
    if len(set(found.get_vocab()) - set(found.all_special_tokens)) < 2:
        raise bare
    return found


def _tokenised(texts: Sequence[str], program: Program, tokenizer: Any, length: int) -> Iterator[Tokens]:
    """Yield each text as the program's inputs, of shape (tokens,); texts without tokens are left out."""
    names = program.input_names()
    for first in range(0, len(texts), CHUNK):
        made = _encoded(texts[first : first + CHUNK], tokenizer, length, names)
        _check_made(program, made)
        kept = [name for name in names if name in made]
        tokens = zip(*(made[name] for name in kept), strict=True)
        yield from (dict(zip(kept, values, strict=True)) for values in tokens if values[0])


def _encoded(texts: Sequence[str], tokenizer: Any, length: int, names: Sequence[str]) -> Mapping[str, Any]:
    options = {"padding": False, "truncation": True, "max_length": length, "return_attention_mask": True}
    encode = partial(tokenizer, list(texts), return_token_type_ids="token_type_ids" in names, **options)
    with quiet():
        made: Mapping[str, Any] = call_or_refuse(f"the tokenizer can't cut texts to {length} tokens", encode)
    return made


def _check_made(program: Program, made: Mapping[str, Any]) -> None:
    """Raise UsageError where the program has no `input_ids`, or the graph reads an input that the tokenizer does not make."""
    read = {node.name for node in program.placeholders() if node.users}
    missing = [name for name in program.input_names() if name in read and name not in made]
    if missing or "input_ids" not in program.input_names():
        wanted = (missing or program.input_names())[0]
        raise UsageError(
            f"the tokenizer makes {', '.join(made)}, and the model takes {wanted!r}; data that hold it: {DATA}"
        )
