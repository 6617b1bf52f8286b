"""How much each unit matters: one score, one file."""
