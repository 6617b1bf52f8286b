"""What a command does: one command or option, one file."""
