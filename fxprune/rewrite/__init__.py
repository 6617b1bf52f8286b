"""Graph transforms, Program to Program: the only code that edits a graph."""
