"""Graph transforms, Program to Program: the only code that edits a graph."""

from fxprune.rewrite.dead_code import remove_dead
from fxprune.rewrite.shrink import zero_readers
from fxprune.rewrite.vocabulary import TokenIds, Vocabulary, keep_tokens, verify_tokens

__all__ = ["TokenIds", "Vocabulary", "keep_tokens", "remove_dead", "verify_tokens", "zero_readers"]
