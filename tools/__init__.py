"""Command line, with its inputs and reports; the only part of fxprune that prints."""
