"""`--tokens`: keep some token ids only, prove it, and write the new ids beside the model."""

import argparse
from dataclasses import dataclass
from typing import Any

from fxprune.errors import SelectionError, UsageError
from fxprune.files import read_text, strict_json
from fxprune.ir import Program
from fxprune.rewrite import TokenIds, Vocabulary, keep_tokens, verify_tokens
from fxprune.rewrite.vocabulary import token_list

TOKENS_FILE = "token_ids.json"


@dataclass(frozen=True)
class TokensRequest:
    """The token ids to keep, their table, the untied outputs that count them, and the size of the table where a file says it (0: not)."""

    ids: tuple[int, ...]
    table: str | None
    outputs: tuple[str, ...]
    size: int = 0


def tokens_request(options: argparse.Namespace) -> TokensRequest | None:
    """Return the request of the options; None where all tokens stay. UsageError where it can't be read."""
    table, outputs = options.token_table, tuple(options.token_outputs)
    if not options.tokens:
        if table or outputs:
            raise UsageError(
                "--token-table and --token-outputs say more about --tokens FILE, which is missing"
            )
        return None
    text = read_text(options.tokens, "token ids", UsageError)
    try:
        if text.lstrip().startswith("{"):
            saved = TokenIds.from_json(text)
            return TokensRequest(saved.ids, table or saved.table, outputs or saved.outputs, saved.size)
        return TokensRequest(_ids(text), table, outputs)
    except SelectionError as error:
        raise UsageError(f"{options.tokens}: {error}") from None


def _ids(text: str) -> tuple[int, ...]:
    """Return ids from a JSON list, or from lines of one id each."""
    if not text.lstrip().startswith("["):
        lines = [(place, line) for place, line in enumerate(text.splitlines(), 1) if line.strip()]
        return token_list([_number(line, place) for place, line in lines])
    try:
        found = strict_json(text)
    except ValueError as error:
        raise SelectionError(f"this is no JSON list ({error})") from None
    return token_list(found)


def _number(line: str, place: int) -> int:
    try:
        return int(line)
    except ValueError:
        raise SelectionError(f"line {place} is no token id: {line.strip()[:40]!r}") from None


def keep_tokens_asked(program: Program, wanted: TokensRequest | None) -> tuple[Program, Vocabulary | None]:
    """Return the program with the wanted tokens only, and its vocabulary; unchanged, and None, without a request."""
    if wanted is None:
        return program, None
    vocabulary = keep_tokens(program, wanted.ids, wanted.table, wanted.outputs)
    if wanted.size not in {0, vocabulary.size}:
        raise UsageError(
            f"--tokens holds ids of a table of {wanted.size} rows, and {vocabulary.table} has {vocabulary.size}: they are of another model"
        )
    return vocabulary.program, vocabulary


def prove_tokens(program: Program, vocabulary: Vocabulary | None) -> dict[str, Any] | None:
    """Prove the kept tokens against the program with all tokens, and return the report's entry."""
    if vocabulary is None:
        return None
    return {
        "table": vocabulary.table,
        "before": vocabulary.size,
        "after": len(vocabulary.ids),
        "inputs": list(vocabulary.inputs),
        "outputs": list(vocabulary.outputs),
        "relative": verify_tokens(program, vocabulary),
        "file": TOKENS_FILE,
    }
