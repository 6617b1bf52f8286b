"""Recovery: training of a pruned program on the outputs of its original, without labels."""

from fxprune.training.recovery.distances import OUTPUT_DISTANCES
from fxprune.training.recovery.options import Lessons
from fxprune.training.recovery.recover import Material, Recovered, recover

__all__ = ["OUTPUT_DISTANCES", "Lessons", "Material", "Recovered", "recover"]
