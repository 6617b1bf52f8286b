"""Texts as calibration data: the lines of a file, cut to tokens by the tokenizer of the model's folder."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from fxprune.calibration.data import Batch, batched_by_length
from fxprune.errors import UsageError
from fxprune.ir import Program, is_free, quiet
from fxprune.tools.inputs.calibration.batching import input_shapes
from fxprune.tools.inputs.calibration.request import DATA, Asked, Request
from fxprune.tools.inputs.huggingface import folder_of, has_tokenizer, load_tokenizer
from fxprune.tools.inputs.loaded import call_or_refuse

CHUNK = 256  # texts tokenized at a time, so that hardly more of a large file is tokenized than is asked for

Tokens = Mapping[str, Sequence[int]]


def check_texts(asked: Asked, model: str, trust: bool) -> None:
    """Raise UsageError for a file that holds no text, and for a model without a tokenizer."""
    text_lines(Path(asked.text))
    text_tokenizer(asked.text, model, trust)


def read_texts(request: Request) -> Iterator[Batch]:
    """Yield the lines of a file in batches of equal length: first those of the rows that are asked for, then those of the others.

    Where the size of a batch is fixed, all are batched at once, since only then is known which rows fill one.
    """
    path, program, batching = Path(request.asked.text), request.program, request.batching
    exact = fixed_tokens(program)
    tokenizer = text_tokenizer(request.asked.text, request.loaded.name, request.loaded.trusted)
    found = _tokenised(text_lines(path), program, tokenizer, exact or checked_length(request.asked))
    fitting = (row for row in found if not exact or len(row["input_ids"]) == exact)
    most = 0 if batching.fixed else request.asked.rows
    used = list(itertools.islice(fitting, most or None))
    if not used:
        why = f"has {exact} tokens, the fixed length of the model" if exact else "is left by the tokenizer"
        raise UsageError(f"no text in {path} {why}; give {'longer' if exact else 'other'} texts")
    batches = batched_by_length(used, batching.step)
    full = [batch for batch in batches if not batching.fixed or len(batch["input_ids"]) == batching.step]
    if not full:
        raise UsageError(
            f"the model takes exactly {batching.step} texts of equal length at once, and {path} does not have so many;"
            " give more texts, or capture the model with a dynamic batch"
        )
    yield from full
    while more := list(itertools.islice(fitting, CHUNK)):
        yield from batched_by_length(more, batching.step)


def text_lines(path: Path) -> list[str]:
    """Return the lines of a text file that hold something; UsageError where there are none."""
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except OSError as error:
        raise UsageError(f"can't read the calibration data {path}: {error}") from None
    except UnicodeDecodeError:
        raise UsageError(
            f"{path} is no text in UTF-8; expected a text file (one text a line), {DATA}"
        ) from None
    texts = [line.strip() for line in lines if line.strip()]
    if not texts:
        raise UsageError(f"{path} holds no text to calibrate on; expected one text a line")
    return texts


def fixed_tokens(program: Program) -> int:
    """Return the length of token rows where it is fixed, 0 where it is dynamic."""
    shape = input_shapes(program).get("input_ids", ())
    return 0 if len(shape) != 2 or is_free(shape[1]) else int(shape[1])


def checked_length(asked: Asked) -> int:
    """Return the length that texts are cut to; UsageError where it is 0."""
    if asked.length < 1:
        raise UsageError(f"calibration texts must be cut to at least 1 token, got {asked.length}")
    return asked.length


def text_tokenizer(source: str, model: str, trust: bool) -> Any:
    """Return the tokenizer of a MODEL's folder; UsageError where it has none, or one that knows no word."""
    bare = UsageError(
        f"{source} is text, and {model} has no tokenizer's files beside the weights; add them, or give data"
        f" that need none: {DATA}"
    )
    folder, _ = folder_of(model)
    if folder and not has_tokenizer(folder):
        raise bare
    try:
        found = load_tokenizer(model, trust)
    except UsageError as error:
        raise UsageError(
            f"{source} is text, which needs the tokenizer of the model: {error}; data without one: {DATA}"
        ) from error
    # From some files transformers makes one with an empty vocabulary (T5's: a space), to which all text is unknown.
    if len(set(found.get_vocab()) - set(found.all_special_tokens)) < 2:
        raise bare
    return found


def _tokenised(texts: Sequence[str], program: Program, tokenizer: Any, length: int) -> Iterator[Tokens]:
    """Yield each text as the program's inputs, of shape (tokens,); texts without tokens are left out."""
    names = program.input_names()
    for first in range(0, len(texts), CHUNK):
        made = encoded_texts(texts[first : first + CHUNK], tokenizer, length, names)
        _check_made(program, made)
        kept = [name for name in names if name in made]
        tokens = zip(*(made[name] for name in kept), strict=True)
        yield from (dict(zip(kept, values, strict=True)) for values in tokens if values[0])


def encoded_texts(
    texts: Sequence[str], tokenizer: Any, length: int, names: Sequence[str]
) -> Mapping[str, Any]:
    """Return what a tokenizer makes of texts, without padding: by name, a list of integers for each text."""
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
