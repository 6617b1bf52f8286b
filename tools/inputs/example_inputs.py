"""Example inputs of a Hugging Face model, drawn by optimum's generators, for the usual names among the arguments of its forward."""

import inspect
import random
from typing import Any

import torch
from torch.export import Dim

from fxprune.errors import UsageError

# Different from each other and from most widths, so that no dimension is taken for another.
BATCH, LENGTH = 3, 13
_SHAPES = {"batch_size": BATCH, "sequence_length": LENGTH, "height": 224, "width": 224}


def example_inputs(model: Any, task: str) -> dict[str, torch.Tensor]:
    """Return the inputs by name, the same every time; UsageError where optimum can't make one."""
    state = random.getstate()
    try:
        with torch.random.fork_rng(devices=[]):
            random.seed(0)
            torch.manual_seed(0)
            return {name: _generate(model, task, name) for name in _input_names(model)}
    finally:
        random.setstate(state)


def _input_names(model: Any) -> list[str]:
    config, main = model.config, model.main_input_name
    takes = [name for name in inspect.signature(model.forward).parameters if name != main]
    text = "input_ids" in (main, *takes)
    extra = {
        "input_ids": True,
        "attention_mask": text and main not in {"input_features", "input_values", "pixel_values"},
        "token_type_ids": getattr(config.get_text_config(), "type_vocab_size", 0) > 1,
        "pixel_values": True,
        "bbox": True,
        "decoder_input_ids": bool(getattr(config, "is_encoder_decoder", False)),
    }
    return [main, *(name for name in takes if extra.get(name))]


def _generate(model: Any, task: str, name: str) -> Any:
    from optimum.utils import input_generators as dummy
    from optimum.utils import normalized_config as normal

    config = model.config
    text = normal.NormalizedTextConfig(config.get_text_config())
    vision = normal.NormalizedVisionConfig(getattr(config, "vision_config", config))
    audio = normal.NormalizedConfig(getattr(config, "audio_config", config))
    choices = (
        (dummy.DummyBboxInputGenerator, text),
        (dummy.DummySeq2SeqDecoderTextInputGenerator, text),
        (dummy.DummyTextInputGenerator, text),
        (dummy.DummyVisionInputGenerator, vision),
        (dummy.DummyAudioInputGenerator, audio),
    )
    for generator, normalized in choices:
        if any(name.startswith(known) for known in generator.SUPPORTED_INPUT_NAMES):
            made = generator(task, normalized, **_SHAPES, **_audio_shapes(config)).generate(name)
            return _ended(made, config) if name == "input_ids" else made
    raise UsageError(f"optimum makes no example input {name!r}")


def _ended(ids: Any, config: Any) -> Any:
    """Return token ids with the end token at the end and nowhere else, as models that pool there require."""
    end = config.get_text_config().eos_token_id
    if not isinstance(end, int) or not 0 < end < config.get_text_config().vocab_size:
        return ids
    ids[ids == end] = end - 1
    ids[..., -1] = end
    return ids


def _audio_shapes(config: Any) -> dict[str, int]:
    frames = 2 * getattr(config, "max_source_positions", 1500)
    return {"feature_size": getattr(config, "num_mel_bins", 80), "nb_max_frames": frames}


def dynamic_dims(value: torch.Tensor) -> dict[int, Any]:
    """Return the dynamic dimensions of an input: the batch, and the length unless it is floating (images, sound)."""
    dims = range(1) if value.is_floating_point() else range(min(value.ndim, 2))
    return dict.fromkeys(dims, Dim.AUTO)
