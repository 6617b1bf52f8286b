"""Unlabelled data: check it, run it, and re-fit weights on it."""
