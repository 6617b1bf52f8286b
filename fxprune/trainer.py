"""transformers.Trainer prunes while it trains: a callback (the extras `hf` and `train`)."""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback

from fxprune.pruner import Pruner


class PruneCallback(TrainerCallback):
    """Closes gates before each step of the optimizer; density is among what is logged.

    The model that the Trainer gets is `gated.module()`. Its checkpoints hold gates and scores, so that a run that is resumed closes the
    same units as one that was not interrupted.
    """

    def __init__(self, pruner: Pruner) -> None:
        self.pruner = pruner

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """After all backward passes of a step."""
        self.pruner.step(state.global_step / max(1, state.max_steps - 1))

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any
    ) -> None:
        """Say how much is left, to who logs after this and in the history, which has its own copy."""
        for entry in (logs, *state.log_history[-1:]):
            if entry is not None:
                entry["density"] = self.pruner.density
