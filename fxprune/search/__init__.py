"""Which plan meets a budget at the least error."""
