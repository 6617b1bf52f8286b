"""transformers.Trainer prunes while it trains: a callback (the extras `hf` and `train`)."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from transformers import TrainerCallback

from fxprune.training import Pruner


class PruneCallback(TrainerCallback):
    """Closes gates before each step of the optimizer; density is among what is logged.

    The model that the Trainer gets is `gated.module()`. Its checkpoints hold gates and scores, so that a run that is resumed closes the
    same units as one that was not interrupted.
    """

    def __init__(self, pruner: Pruner) -> None:
        self.pruner, self._resting = pruner, ExitStack()

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """After all backward passes of a step."""
        self.pruner.step(state.global_step / max(1, state.max_steps - 1))

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """An evaluation that follows sees gates as they would be deployed."""
        self._rest(control)

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """As after a step."""
        self._rest(control)

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Training goes on with gates that are drawn."""
        self._resting.close()

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Gates that are drawn by chance settle."""
        self._resting.close()
        self.pruner.settle()

    def _rest(self, control: Any) -> None:
        if control.should_evaluate:
            self._resting.close()
            self._resting.enter_context(self.pruner.still())

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any
    ) -> None:
        """Say how much is left, to who logs after this and in the history, which has its own copy."""
        for entry in (logs, *state.log_history[-1:]):
            if entry is not None:
                entry["density"] = self.pruner.density
