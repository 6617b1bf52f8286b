"""Train a program: plain, from a teacher, or while its gates close."""
