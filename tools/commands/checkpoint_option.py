"""`--checkpoint`: write the slim program as a stock Hugging Face checkpoint to OUT/checkpoint, or report why there is none."""

import contextlib
from pathlib import Path
from typing import Any

from fxprune.errors import ExportError, RefusedError, UsageError
from fxprune.integrations.huggingface.checkpoint import save_pretrained
from fxprune.ir import Program, quiet
from fxprune.tools.inputs.huggingface import load_tokenizer
from fxprune.tools.inputs.loaded import Loaded

FOLDER = "checkpoint"


def check_checkpoint_option(loaded: Loaded) -> None:
    """Raise UsageError for a model without a Hugging Face config."""
    if loaded.config is None:
        raise UsageError(
            f"--checkpoint writes a Hugging Face model; {loaded.name} is none: give hf:DIR, or leave it out"
        )


def write_checkpoint_folder(
    loaded: Loaded, slim: Program, out: Path, tokenizer: bool = True
) -> dict[str, Any]:
    """Write a checkpoint that is proved equal, with `tokenizer` also the model's tokenizer, if any; return the report's entry."""
    model: Any = loaded.model
    try:
        # The model's own config was set up for capturing.
        made = save_pretrained(model, slim, out / FOLDER, config=loaded.config)
    except (RefusedError, ExportError) as error:
        return {"folder": "", "why": str(error)}
    if tokenizer:
        with contextlib.suppress(UsageError), quiet():
            load_tokenizer(loaded.name, loaded.trusted).save_pretrained(out / FOLDER)
    settings = {name: list(values) for name, values in made.settings.items()}
    told = {"settings": settings, "relative": made.relative, "unread": list(made.carried)}
    return {"folder": FOLDER, "why": "", "class": type(model).__name__, **told}
