"""Regions: the parts of a graph that can be bypassed (layers, residual branches), and the reasons why other repeated modules can't."""

from fxprune.analysis.regions.find import find_regions
from fxprune.analysis.regions.region import UNITS, Region

__all__ = ["UNITS", "Region", "find_regions"]
