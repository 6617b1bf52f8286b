"""Reports of single steps of a pipeline."""
