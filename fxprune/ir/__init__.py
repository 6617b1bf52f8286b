"""The data that everything works on: Program, Selection, and primitive edits of a graph."""
