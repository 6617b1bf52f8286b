"""Scale: peak memory and time of pruning models that are larger than the memory they may use."""
