"""Progress of a recovery: when parts stop to learn by themselves."""

import pytest

from fxprune.training.recovery.progress import RecoveryLog, State
from fxprune.training.recovery.trainer import Manner
from fxprune.training.recovery.weights import Best


@pytest.mark.parametrize(
    ("losses", "whole"),
    [
        ([1.0], False),
        ([1.0, 1.1], False),
        ([1.0, 1.1, 1.2], True),
        ([1.0, 1.1, 0.9, 1.0], False),
        ([1.0, 1.1, 1.2, 0.5, 0.4], True),  # once over, it stays over
        ([1.0, 0.9, 0.8, 0.8, 0.8], True),
    ],
)
def test_parts_learn_by_themselves_until_two_judgements_better_nothing(
    losses: list[float], whole: bool
) -> None:
    log = RecoveryLog(None, "")
    log.begin(State(1.0, Best(losses[0], {}), Manner(1e-4), {}))
    log.state.history.extend({"loss": loss} for loss in losses[1:])
    assert log.is_whole() is whole
