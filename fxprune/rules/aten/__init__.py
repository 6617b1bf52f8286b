"""The rules of ATen operators: one family of operators, one file."""
