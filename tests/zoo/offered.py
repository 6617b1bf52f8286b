"""Share of a program's parameters that its axes offer, and for the others the reasons of the analysis."""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

from fxprune.analysis import Analysis
from fxprune.tools.reports.report import short

TOO_SMALL = "no dimension is larger than 1"


class Refused(NamedTuple):
    """Parameters on no axis, for one reason: their share of all, the reason, the operator and the user's line where it arose."""

    share: float
    why: str
    operator: str
    source: str


def offered_share(analysis: Analysis) -> float:
    """Return the share of the parameters that are on an axis: of 12 values in two tensors, 9 / 12 where one of 9 has a dimension in it."""
    sizes = _sizes(analysis)
    return sum(sizes[name] for name in _offered(analysis) if name in sizes) / max(1, sum(sizes.values()))


def refused_shares(analysis: Analysis) -> tuple[Refused, ...]:
    """Return the reasons for the parameters on no axis, the largest share first; several dimensions of one have several reasons."""
    sizes, offered = _sizes(analysis), _offered(analysis)
    shares: Counter[tuple[str, str, str]] = Counter()
    for name in sizes.keys() - offered:
        shares[_reason(analysis, name)] += sizes[name]
    total = max(1, sum(sizes.values()))
    return tuple(Refused(count / total, *reason) for reason, count in shares.most_common())


def _sizes(analysis: Analysis) -> dict[str, int]:
    return {name: value.numel() for name, value in analysis.program.parameters().items()}


def _offered(analysis: Analysis) -> set[str]:
    return {member.name for axis in analysis.axes for member in axis.members}


def _reason(analysis: Analysis, name: str) -> tuple[str, str, str]:
    """The reasons of a parameter's dimensions in their order, the first one's operator and line."""
    found = [(place, refusal) for refusal in analysis.refusals for at, place in refusal.places if at == name]
    if not found:
        return TOO_SMALL, "", ""
    ordered = [refusal for _, refusal in sorted(found, key=lambda each: each[0])]
    whys = dict.fromkeys(refusal.why for refusal in ordered)
    return "; ".join(whys), ordered[0].operator, short(ordered[0].source)
