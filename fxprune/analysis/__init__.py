"""Analyses of a Program: what can be pruned, what is coupled, and why the rest stays whole. Nothing here edits a graph."""

from fxprune.analysis.axes import Analysis, Axis, analyze
from fxprune.analysis.dim_inference import flat_dims
from fxprune.analysis.linear_ops import Matrix, matrices
from fxprune.analysis.regions import Region
from fxprune.analysis.units import Units

__all__ = ["Analysis", "Axis", "Matrix", "Region", "Units", "analyze", "flat_dims", "matrices"]
