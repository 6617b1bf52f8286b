"""Analyses of a Program: what can be pruned, what is coupled, and why the rest stays whole. Nothing here edits a graph."""
