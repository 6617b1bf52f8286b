"""Trainer callback: prune while transformers.Trainer trains (the extras `hf` and `train`)."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from transformers import TrainerCallback

from fxprune.training import Pruner


class PruneCallback(TrainerCallback):
    """Callback that closes gates before each step of the optimizer, and logs the density.

    The model that the Trainer gets is `gated.module()`. Its checkpoints contain gates and scores, so that a resumed run closes the same
    units as an uninterrupted one.
    """

    def __init__(self, pruner: Pruner) -> None:
        self.pruner, self._resting = pruner, ExitStack()

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Step the pruner, after all backward passes of a step."""
        self.pruner.step(state.global_step / max(1, state.max_steps - 1))

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Set gates to their deployed values if an evaluation follows."""
        self._rest(control)

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Set gates to their deployed values if an evaluation follows."""
        self._rest(control)

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Restore the stochastic gates for training."""
        self._resting.close()

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Settle stochastic gates."""
        self._resting.close()
        self.pruner.settle()

    def _rest(self, control: Any) -> None:
        if control.should_evaluate:
            self._resting.close()
            self._resting.enter_context(self.pruner.still())

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any
    ) -> None:
        """Add the density to the logs for later callbacks, and to the history, which has its own copy."""
        for entry in (logs, *state.log_history[-1:]):
            if entry is not None:
                entry["density"] = self.pruner.density
