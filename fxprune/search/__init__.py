"""Search for the plan that meets a budget at the least error."""

from fxprune.search.journal import Journal
from fxprune.search.layer_scores import Evaluate

__all__ = ["Evaluate", "Journal"]
