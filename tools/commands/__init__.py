"""Commands of `fxprune`: one command or option, one file."""
