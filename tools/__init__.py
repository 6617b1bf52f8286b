"""The command line and what it needs; the only part of fxprune that prints."""
