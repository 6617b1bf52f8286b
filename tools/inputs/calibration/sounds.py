"""Sounds as inputs: decoded, resampled, and cut or padded with silence, by the model's own feature extractor where it has one."""

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from scipy.io import wavfile
from scipy.signal import resample_poly
from torch import Tensor

from fxprune.errors import UsageError
from fxprune.ir import Program, is_free, quiet
from fxprune.tools.inputs.calibration.request import (
    SAMPLING_OPTION,
    Asked,
    Request,
    Slot,
    one_input,
    slots,
)
from fxprune.tools.inputs.huggingface import load_preprocessor
from fxprune.tools.inputs.loaded import call_or_refuse

#: suffix of a sound's file: whether soundfile reads it
SOUNDS = {".wav": False, ".flac": True, ".ogg": True}


@dataclass(frozen=True)
class Sound:
    """Samples, (channels, time) between -1 and 1, and their number in a second."""

    samples: Any
    rate: int

    def at(self, rate: int) -> Any:
        """Return the samples at another rate."""
        common = math.gcd(rate, self.rate)
        if rate == self.rate:
            return self.samples
        return resample_poly(self.samples, rate // common, self.rate // common, axis=-1).astype(np.float32)


PrepareSound = Callable[[Sound], dict[str, Tensor]]


def check_rate(asked: Asked, model: str, trust: bool) -> None:
    """Raise UsageError where nobody says at how many samples in a second the model hears, or two say different things."""
    _rate(asked, model, load_preprocessor("AutoFeatureExtractor", model, trust))


def check_decoder(suffix: str) -> None:
    """Raise UsageError where files of this suffix need a package that is missing."""
    if SOUNDS[suffix]:
        _soundfile(suffix)


def decode_sound(file: Path | BinaryIO, suffix: str) -> Sound:
    """Return the sound of a file; what decoders raise at broken files comes through."""
    if SOUNDS.get(suffix, True):
        samples, rate = _soundfile(suffix).read(file, dtype="float32", always_2d=True)
        return Sound(np.ascontiguousarray(samples.T), int(rate))
    with quiet():
        rate, pulses = wavfile.read(file)
    if not len(pulses):
        raise ValueError("it holds no samples")
    return Sound(_scaled(np.atleast_2d(pulses.T)), int(rate))


def _scaled(pulses: Any) -> Any:
    """Return samples between -1 and 1: bytes have their zero in the middle, integers their full scale at the ends."""
    if pulses.dtype.kind == "f":
        return pulses.astype(np.float32)
    scale = float(2 ** (8 * pulses.dtype.itemsize - 1))
    middle = scale if pulses.dtype.kind == "u" else 0.0
    return ((pulses.astype(np.float64) - middle) / scale).astype(np.float32)


def _soundfile(suffix: str) -> Any:
    try:
        import soundfile  # type: ignore[import-not-found]
    except (ImportError, OSError) as error:
        raise UsageError(
            f"{suffix or 'this kind of'} sound is read by soundfile ({error}); install: pip install 'fxprune[audio]',"
            " or give .wav files"
        ) from error
    return soundfile


def _rate(asked: Asked, model: str, extractor: Any) -> int:
    own = getattr(extractor, "sampling_rate", None)
    if own and asked.sampling_rate not in {None, own}:
        raise UsageError(
            f"{SAMPLING_OPTION} {asked.sampling_rate}: the feature extractor of {model} takes {own} samples a second;"
            " leave the option out"
        )
    if not (own or asked.sampling_rate):
        raise UsageError(
            f"{asked.text} holds sounds: say how many samples in a second {model} is made for, as in {SAMPLING_OPTION} 16000"
        )
    return int(own or asked.sampling_rate or 0)


@dataclass(frozen=True)
class SoundInput:
    """The input that takes samples: its channels (0: it has no such dimension) and their number."""

    slot: Slot
    channels: int
    length: int

    def shaped(self, samples: Any) -> Tensor:
        """Return samples (channels, time) as the input takes them, cut at the end or filled with silence."""
        cut = samples[:, : self.length]
        filled = np.pad(cut, ((0, 0), (0, self.length - cut.shape[-1])))
        if self.channels == 2:
            return torch.from_numpy(filled[:2] if len(filled) > 1 else filled.repeat(2, 0))
        mono = torch.from_numpy(filled.mean(0, keepdims=True))
        return mono if self.channels else mono[0]


def sound_input(program: Program) -> SoundInput:
    """Return the input that takes samples; UsageError where none has the form of sound, or several have."""
    form = "sound (N × samples, or N × 1 or 2 channels × samples)"
    return one_input(program, _as_sound, form)


def _as_sound(slot: Slot) -> SoundInput | None:
    sizes = slot.takes
    if not slot.example.is_floating_point() or len(sizes) not in {2, 3}:
        return None
    if len(sizes) == 2:
        return SoundInput(slot, 0, slot.size(1))
    if is_free(sizes[1]) or int(sizes[1]) not in {1, 2}:
        return None
    return SoundInput(slot, int(sizes[1]), slot.size(2))


def sound_preparation(request: Request) -> PrepareSound:
    """Return the function that makes a row of inputs of a sound: by the model's own feature extractor where it has one."""
    asked, loaded = request.asked, request.loaded
    extractor = load_preprocessor("AutoFeatureExtractor", loaded.name, loaded.trusted)
    rate = _rate(asked, loaded.name, extractor)
    if extractor is not None:
        return _own(request, extractor, rate)
    found = sound_input(request.program)
    return lambda sound: {found.slot.name: found.shaped(sound.at(rate))}


def _own(request: Request, extractor: Any, rate: int) -> PrepareSound:
    """Return the function that a model's feature extractor makes; one that takes lengths is asked for that of the program's samples."""
    names, kind = request.program.input_names(), type(extractor).__name__
    options = {"sampling_rate": rate, "return_tensors": "pt", **_lengths(request.program, extractor)}

    def prepare(sound: Sound) -> dict[str, Tensor]:
        mono = sound.at(rate).mean(0)
        with quiet():
            made = call_or_refuse(
                f"{kind} of {request.loaded.name} can't prepare a sound", lambda: extractor(mono, **options)
            )
        row = {name: made[name][0] for name in names if isinstance(made.get(name), Tensor)}
        if not row:
            raise UsageError(f"{kind} makes {', '.join(made)}, and the model takes {', '.join(names)}")
        return row

    return prepare


def _lengths(program: Program, extractor: Any) -> dict[str, Any]:
    """Return the options that pad and cut to the samples that a program takes; none where it takes features."""
    wanted = {"padding": "max_length", "truncation": True}
    takes = inspect.signature(type(extractor).__call__).parameters
    raw = [each for slot in slots(program) if len(slot.takes) == 2 and (each := _as_sound(slot))]
    if len(raw) != 1 or not {*wanted, "max_length"} <= takes.keys():
        return {}
    return {**wanted, "max_length": raw[0].length}
