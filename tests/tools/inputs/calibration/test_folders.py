"""Folders of images and sounds: read lazily, prepared as the model takes them; what is broken is passed over and named."""

from __future__ import annotations

import json
import re
import struct
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import wavfile
from torch import Tensor, nn
from torch.export import Dim

from fxprune import Program, capture
from fxprune.calibration import Calibration
from fxprune.errors import UsageError
from fxprune.tools.inputs.calibration import folders, sounds
from fxprune.tools.inputs.calibration.forms import check_source, read_calibration
from fxprune.tools.inputs.calibration.images import decode_image
from fxprune.tools.inputs.calibration.request import Asked
from fxprune.tools.inputs.calibration.sounds import Sound, decode_sound
from fxprune.tools.inputs.loaded import Loaded

NONE = Loaded("py:somewhere:net", nn.Identity())
IMAGENET = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])


class Sum(nn.Module):
    """Any inputs, in one output."""

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        return x.float().sum() if y is None else x.float().sum() + y.sum()


def taking(*sizes: int, dtype: torch.dtype = torch.float32, free: Any = Dim.AUTO) -> Program:
    example = torch.linspace(-2, 2, int(np.prod(sizes))).reshape(sizes).to(dtype)
    dynamic = {"x": {0: free}, "y": None} if free else None
    return capture(Sum(), (example,), {}, dynamic)


def read(place: Path, program: Program, loaded: Loaded = NONE, **options: Any) -> Calibration:
    return read_calibration(Asked(str(place), **options), program, loaded)


def refused(sentence: str, place: Path, program: Program, loaded: Loaded = NONE, **options: Any) -> None:
    with pytest.raises(UsageError, match=re.escape(sentence)):
        read(place, program, loaded, **options)


def picture(
    path: Path, color: Any = (255, 0, 0), size: tuple[int, int] = (20, 10), mode: str = "RGB"
) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, color).save(path)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for place in range(8):
        suffix = ("png", "jpg", "webp", "BMP")[place % 4]
        picture(tmp_path / f"class{place // 4}" / f"{place}.{suffix}", (30 * place, 0, 0))
    picture(tmp_path / "class0" / "._0.png")
    (tmp_path / "notes.txt").write_text("no image")
    return tmp_path


def test_images_are_resized_cropped_and_normalised(tmp_path: Path) -> None:
    wide = Image.new("RGB", (40, 10), (0, 0, 255))
    wide.paste((255, 0, 0), (10, 0, 30, 10))  # only the middle is red
    wide.save(tmp_path / "wide.png")
    found = read(tmp_path, taking(2, 3, 8, 8), normalization="none")
    assert found.batches[0]["x"].shape == (1, 3, 8, 8)
    assert torch.equal(found.batches[0]["x"][0, :, 4, 4], torch.tensor([1.0, 0, 0]))
    assert torch.equal(found.batches[0]["x"][0, :, 0, 0], torch.tensor([1.0, 0, 0]))
    half = read(tmp_path, taking(2, 3, 8, 8), normalization="mean=0.5 std=0.25,0.5,1")
    assert half.batches[0]["x"][0, :, 0, 0].tolist() == [2, -1, -0.5]


def test_what_is_assumed_is_said_and_how_to_say_otherwise(photos: Path) -> None:
    found = read(photos, taking(2, 3, 8, 8))
    expected = ((torch.zeros(3) - IMAGENET[0]) / IMAGENET[1]).tolist()
    assert found.batches[0]["x"][0, :, 0, 0].tolist() == pytest.approx(expected)
    assert found.notes == (
        (
            "calibrated on images that are normalised as imagenet (mean=0.485,0.456,0.406 std=0.229,0.224,0.225), which is assumed:"
            " --image-normalization says otherwise"
        ),
    )
    assert "normalised as none (mean=0 std=1)" in read(photos, taking(2, 1, 8, 8)).notes[0]
    assert len(read(photos, taking(2, 3, 8, 8), normalization="imagenet").notes) == 0


@pytest.mark.parametrize(
    ("sizes", "shape"),
    [((2, 1, 6, 8), (8, 1, 6, 8)), ((2, 6, 8, 3), (8, 6, 8, 3)), ((2, 6, 8, 1), (8, 6, 8, 1))],
)
def test_the_layout_follows_the_input(photos: Path, sizes: tuple[int, ...], shape: tuple[int, ...]) -> None:
    found = read(photos, taking(*sizes), normalization="half")
    assert found.batches[0]["x"].shape == shape
    assert found.images == (("x",) if shape[1] == 1 else ())  # channels first: these may be augmented


def test_a_dynamic_size_is_that_of_the_example(photos: Path) -> None:
    dynamic = {"x": dict.fromkeys((0, 2, 3), Dim.AUTO), "y": None}
    program = capture(Sum(), (torch.randn(2, 3, 12, 9),), {}, dynamic)
    assert read(photos, program).batches[0]["x"].shape == (8, 3, 12, 9)


def test_bytes_are_left_as_they_are(photos: Path) -> None:
    found = read(photos, taking(2, 3, 8, 8, dtype=torch.uint8))
    assert (found.batches[0]["x"].dtype, found.notes, found.images) == (torch.uint8, (), ())
    refused("x takes bytes", photos, taking(2, 3, 8, 8, dtype=torch.uint8), normalization="half")


def test_all_kinds_of_pixels_are_decoded(tmp_path: Path) -> None:
    deep = tmp_path / "deep.png"
    Image.fromarray(np.full((4, 4), 32768, np.uint16)).save(deep)
    assert (decode_image(deep).mode, decode_image(deep).getpixel((0, 0))) == ("L", 128)
    for mode, color, expected in (
        ("RGBA", (9, 8, 7, 0), "RGB"),
        ("LA", (9, 0), "L"),
        ("P", 3, "RGB"),
        ("1", 1, "L"),
    ):
        picture(tmp_path / f"{mode}.png", color, mode=mode)
        assert decode_image(tmp_path / f"{mode}.png").mode == expected
    turned = Image.Exif()
    turned[0x0112] = 6  # a quarter turn
    Image.new("RGB", (20, 10)).save(tmp_path / "turned.jpg", exif=turned)
    assert decode_image(tmp_path / "turned.jpg").size == (10, 20)


def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return a list that fills with the names of the files that are decoded."""
    done: list[str] = []

    def decode(path: Path) -> Any:
        done.append(path.name)
        return decode_image(path)

    monkeypatch.setattr(folders, "decode_image", decode)
    return done


def test_no_more_files_are_decoded_than_rows_are_asked_for(
    photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = counted(monkeypatch)
    found = read(photos, taking(2, 3, 8, 8), rows=3, normalization="none")
    assert (found.rows, done) == (
        3,
        ["0.png", "4.png", "2.webp"],
    )  # spread over the sorted list: both classes
    both = [round(float(value) * 255 / 30) for batch in found for value in batch["x"][:, 0, 0, 0]]
    assert len(both) == len(done) - 3 == 8  # iterating reads on, and passes over those in memory
    assert (sorted(both), sum(1 for _ in found)) == (list(range(8)), 2)
    done.clear()
    fixed = read(photos, taking(2, 3, 8, 8, free=None), rows=5, normalization="none")
    assert (fixed.rows, len(done), len(fixed.batches)) == (4, 4, 2)


def test_a_broken_file_is_passed_over_and_named(photos: Path) -> None:
    for name in ("class0/0.png", "class1/7.BMP"):
        (photos / name).write_bytes((photos / name).read_bytes()[:40])
    found = read(photos, taking(2, 3, 8, 8), normalization="none", rows=6)
    assert found.rows == 6
    assert found.notes[0].startswith("calibrated without what can't be read: class0/0.png (")
    for path in photos.rglob("*.*"):
        path.write_bytes(b"nothing")
    refused(
        f"none of the images in {photos} can be read; the first is class0/0.png: ", photos, taking(2, 3, 8, 8)
    )


def test_a_model_without_one_input_of_images_is_refused(photos: Path) -> None:
    refused("no input of the model has the form of images (N × 1 or 3 channels", photos, taking(2, 4, 8, 8))
    refused("channels last): x 2×5; give data by input name", photos, taking(2, 5))
    two = capture(Sum(), (torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)))
    refused("x and y have the form of images", photos, two)
    beside = capture(Sum(), (torch.randn(2, 3, 4, 4), torch.randn(2, 5)))
    refused("calibration batch 1 lacks 'y'; the program takes the inputs x, y", photos, beside)
    refused("imagenet is for 3 channels, and the", photos, taking(2, 1, 8, 8), normalization="imagenet")


def test_an_option_must_fit_the_form(photos: Path) -> None:
    def told(sentence: str, asked: Asked, model: str = "py:a:b") -> None:
        with pytest.raises(UsageError, match=re.escape(sentence)):
            check_source(asked, model)

    check_source(Asked(str(photos), normalization="half"), "py:a:b")
    told(
        "--sampling-rate is for a FOLDER of sounds, FOLDER of a data set; --",
        Asked(str(photos), sampling_rate=8000),
    )
    told("--image-normalization 'x': expected", Asked(str(photos), normalization="x"))
    wavfile.write(photos / "a.wav", 8000, np.zeros(9, np.int16))
    told("is a FOLDER of images and a FOLDER of sounds; give a folder that holds one", Asked(str(photos)))
    (photos / "empty").mkdir()
    told("empty holds nothing to calibrate on; expected py:PACKAGE", Asked(str(photos / "empty")))
    told("there is no file or folder", Asked(str(photos / "absent")))
    sound = photos / "sounds"
    sound.mkdir()
    (photos / "a.wav").rename(sound / "a.wav")
    told(
        "say how many samples in a second py:a:b is made for, as in --sampling-rate 16000", Asked(str(sound))
    )
    (sound / "b.flac").write_bytes(b"fLaC")
    if find_spec("soundfile") is None:
        told(".flac sound is read by soundfile", Asked(str(sound), sampling_rate=8000))


def tone(path: Path, kind: Any = np.int16, rate: int = 8000, seconds: float = 0.5, channels: int = 1) -> None:
    wave = np.sin(np.arange(int(rate * seconds)) * 2 * np.pi * 440 / rate) / 2
    if np.issubdtype(kind, np.integer):
        information = np.iinfo(kind)
        wave = wave * information.max if information.min else wave * 127 + 128
    samples = wave.astype(kind)
    wavfile.write(path, rate, samples if channels == 1 else np.stack([samples, np.zeros_like(samples)], 1))


@pytest.mark.parametrize("kind", [np.int16, np.int32, np.uint8, np.float32])
def test_sounds_of_all_depths_lie_between_minus_one_and_one(tmp_path: Path, kind: Any) -> None:
    tone(tmp_path / "a.wav", kind)
    found = decode_sound(tmp_path / "a.wav", ".wav")
    assert (found.samples.shape, found.rate) == ((1, 4000), 8000)
    assert float(found.samples.max()) == pytest.approx(0.5, abs=0.01)
    assert float(found.samples.mean()) == pytest.approx(0, abs=0.01)


def test_sounds_are_resampled_and_cut_or_padded(tmp_path: Path) -> None:
    tone(tmp_path / "a.wav", rate=8000, seconds=0.05)
    tone(tmp_path / "b.wav", rate=44100, seconds=0.2, channels=2)
    found = read(tmp_path, taking(2, 1600), sampling_rate=16000).batches[0]["x"]
    assert found.shape == (2, 1600)
    assert float(found[0, 800:].abs().max()) < 0.01  # 0.05 s, then silence
    spectrum = np.abs(np.fft.rfft(found[1].numpy()))
    assert int(spectrum.argmax()) == 44  # 440 Hz of 0.1 s
    assert float(found[1].max()) == pytest.approx(0.25, abs=0.02)  # the mean of both channels
    stereo = read(tmp_path, taking(2, 2, 400), sampling_rate=8000).batches[0]["x"]
    assert torch.equal(stereo[0, 0], stereo[0, 1])
    assert float(stereo[1, 1].abs().max()) < 0.01
    assert read(tmp_path, taking(2, 1, 400), sampling_rate=8000).batches[0]["x"].shape == (2, 1, 400)
    assert Sound(np.zeros((1, 11025), np.float32), 11025).at(8000).shape == (1, 8000)


def test_a_model_without_an_input_of_sound_is_refused(tmp_path: Path) -> None:
    tone(tmp_path / "a.wav")
    (tmp_path / "b.wav").write_bytes(b"RIFF nothing")
    refused("no input of the model has the form of sound", tmp_path, taking(2, 3, 8, 8), sampling_rate=8000)
    found = read(tmp_path, taking(2, 400), sampling_rate=8000)
    assert (found.rows, "without what can't be read: b.wav (" in found.notes[0]) == (1, True)
    wavfile.write(tmp_path / "a.wav", 8000, np.zeros(0, np.int16))
    refused("none of the sounds in", tmp_path, taking(2, 400), sampling_rate=8000)


def preprocessor(place: Path, **told: Any) -> Loaded:
    pytest.importorskip("transformers")
    pytest.importorskip("optimum")
    place.mkdir()
    (place / "preprocessor_config.json").write_text(json.dumps(told))
    return replace(NONE, name=f"hf:{place}")


class Pixels(nn.Module):
    def forward(self, pixel_values: Tensor) -> Tensor:
        return pixel_values.sum()


def pixels(size: int) -> Program:
    example = {"pixel_values": torch.randn(2, 3, size, size)}
    return capture(Pixels(), (), example, {"pixel_values": {0: Dim.AUTO}})


def test_a_folder_of_a_model_prepares_images_itself(photos: Path, tmp_path: Path) -> None:
    sizes = {"height": 16, "width": 16}
    own = preprocessor(
        tmp_path / "vit", image_processor_type="ViTImageProcessor", size=sizes, image_mean=[0.25] * 3
    )
    found = read(photos / "class0", pixels(16), own)
    assert found.batches[0]["pixel_values"].shape == (4, 3, 16, 16)
    assert found.batches[0]["pixel_values"][0, 0, 0, 0] == -0.5  # (0 - 0.25) / 0.5
    assert (found.notes, found.images) == ((), ("pixel_values",))
    asked = read(photos / "class0", pixels(16), own, normalization="none")
    assert asked.batches[0]["pixel_values"][0, 0, 0, 0] == 0


def test_sizes_that_the_program_does_not_take_leave_the_processors_numbers(
    photos: Path, tmp_path: Path
) -> None:
    sizes = {"height": 16, "width": 16}
    own = preprocessor(
        tmp_path / "vit", image_processor_type="ViTImageProcessor", size=sizes, image_mean=[0.25] * 3
    )
    found = read(photos / "class0", pixels(12), own)
    assert found.batches[0]["pixel_values"].shape == (4, 3, 12, 12)
    assert found.batches[0]["pixel_values"][0, 0, 0, 0] == -0.5
    assert found.notes[0].startswith(
        "calibrated on images of 12×12, which the program takes; ViTImageProcessor"
    )
    refused("makes pixel_values, and the model takes x", photos, taking(2, 5), own)
    broken = preprocessor(tmp_path / "no", image_processor_type="Nonsense")
    refused(f"{tmp_path / 'no'}: its AutoImageProcessor can't be read", photos, pixels(12), broken)


class Values(nn.Module):
    def forward(self, input_values: Tensor) -> Tensor:
        return input_values.sum()


def test_a_folder_of_a_model_prepares_sounds_itself(tmp_path: Path) -> None:
    heard = tmp_path / "sounds"
    heard.mkdir()
    tone(heard / "a.wav", seconds=0.05)
    tone(heard / "b.wav", seconds=0.2)
    own = preprocessor(
        tmp_path / "wav2vec2",
        feature_extractor_type="Wav2Vec2FeatureExtractor",
        sampling_rate=16000,
        do_normalize=True,
    )
    program = capture(Values(), (), {"input_values": torch.randn(2, 1600)}, {"input_values": {0: Dim.AUTO}})
    found = read(heard, program, own).batches[0]["input_values"]
    assert found.shape == (2, 1600)
    assert float(found[1].std()) == pytest.approx(1, abs=0.01)
    refused("takes 16000 samples a second; leave the option out", heard, program, own, sampling_rate=8000)
    spoken = preprocessor(
        tmp_path / "ast", feature_extractor_type="ASTFeatureExtractor", num_mel_bins=32, max_length=64
    )
    features = {"input_values": torch.randn(2, 64, 32)}
    program = capture(Values(), (), features, {"input_values": {0: Dim.AUTO}})
    assert read(heard, program, spoken).batches[0]["input_values"].shape == (2, 64, 32)


def test_a_missing_decoder_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "soundfile", None)
    with pytest.raises(UsageError, match=r"install: pip install 'fxprune\[audio\]', or give \.wav files"):
        sounds.check_decoder(".ogg")
    monkeypatch.setitem(__import__("sys").modules, "PIL", None)
    picture_file = tmp_path / "a.png"
    picture_file.write_bytes(struct.pack("<I", 0))
    with pytest.raises(UsageError, match=r"images are read by Pillow .*pip install 'fxprune\[images\]'"):
        check_source(Asked(str(tmp_path)), "py:a:b")
