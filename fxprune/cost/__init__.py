"""Parameters, FLOPs and measured latency, of programs and their parts."""

from fxprune.cost.budgets import BUDGETS
from fxprune.cost.latency import Clock, default_cache

__all__ = ["BUDGETS", "Clock", "default_cache"]
