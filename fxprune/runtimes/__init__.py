"""Run and time files: one runtime, one file."""
