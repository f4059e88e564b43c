"""Images and recordings read from files."""

import re
import wave
from types import SimpleNamespace

import numpy as np
import pytest

from gqakit.data.pixels import PixelTransform
from gqakit.data.samples import read_images, read_speech
from gqakit.errors import DataError, UsageError

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (5, 12, 10, 3), dtype=np.uint8)


def write_wav(path, samples, rate=16_000, channels=1):
    with wave.open(str(path), "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(samples.astype("<i2").tobytes())


@pytest.mark.parametrize(
    "array", [PIXELS, PIXELS[..., 0], np.moveaxis(PIXELS, -1, 1)], ids=["colour", "grey", "channels first"]
)
def test_arrays(tmp_path, array):
    np.savez(tmp_path / "a.npz", labels=np.arange(5), images=array)
    found = read_images(tmp_path / "a.npz", 4)
    expected = np.repeat(array[..., None], 3, -1) if array.ndim == 3 else PIXELS
    assert np.array_equal(found.pixels, expected[:4])
    np.save(tmp_path / "a.npy", array)
    assert read_images(tmp_path / "a.npy", 4).sha256 == found.sha256
    assert read_images(tmp_path / "a.npy").sha256 != found.sha256


def test_a_folder_of_images(tmp_path):
    image = pytest.importorskip("PIL.Image")
    for name, pixels in zip("ba", PIXELS, strict=False):
        image.fromarray(pixels).save(tmp_path / f"{name}.png")
    found = read_images(tmp_path)
    assert found.name == tmp_path.name
    assert np.array_equal(found.pixels, PIXELS[[1, 0]])
    assert len(read_images(tmp_path, 1).pixels) == 1
    (tmp_path / "c.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"cannot read image .*c\.png"):
        read_images(tmp_path)


def test_what_holds_no_images(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"empty holds no images; known endings: \.png"):
        read_images(tmp_path / "empty")
    np.savez(tmp_path / "floats.npz", x=np.zeros((2, 4, 4, 3)))
    with pytest.raises(DataError, match=re.escape("seen float64 [2, 4, 4, 3]")):
        read_images(tmp_path / "floats.npz")
    (tmp_path / "bad.npz").write_bytes(b"no archive")
    with pytest.raises(DataError, match=r"cannot read .*bad\.npz"):
        read_images(tmp_path / "bad.npz")
    (tmp_path / "text.txt").write_text("words")
    with pytest.raises(DataError, match="neither a folder of images nor"):
        read_images(tmp_path / "text.txt")


def test_recordings(tmp_path):
    samples = (8000 * np.sin(np.arange(1600) / 5)).round()
    write_wav(tmp_path / "b.wav", samples)
    write_wav(tmp_path / "a.wav", np.repeat(samples, 2), channels=2)
    found = read_speech([tmp_path])
    assert [len(clip) for clip in found.clips] == [1600, 1600]
    assert np.allclose(found.clips[0], samples / 2**15)
    assert np.array_equal(found.clips[0], found.clips[1])
    assert len(read_speech([tmp_path], 1).clips) == 1


def test_other_rates_are_resampled(tmp_path):
    write_wav(tmp_path / "a.wav", 8000 * np.sin(2 * np.pi * 200 * np.arange(4000) / 8000), rate=8000)
    (clip,) = read_speech([tmp_path / "a.wav"]).clips
    assert len(clip) == 8000
    expected = 8000 / 2**15 * np.sin(2 * np.pi * 200 * np.arange(8000) / 16_000)
    assert np.abs(clip - expected)[200:-200].max() < 5e-3


def test_what_is_no_recording(tmp_path):
    with pytest.raises(DataError, match="no recordings in"):
        read_speech([tmp_path])
    (tmp_path / "a.wav").write_bytes(b"RIFF")
    with pytest.raises(DataError, match=r"cannot read recording .*a\.wav"):
        read_speech([tmp_path])
    with pytest.raises(DataError, match=r"cannot read recording .*gone\.wav"):
        read_speech([tmp_path / "gone.wav"])
    write_wav(tmp_path / "a.wav", np.zeros(0))
    with pytest.raises(DataError, match=r"a\.wav is empty"):
        read_speech([tmp_path])


def test_the_size_belongs_to_what_was_seen(tmp_path):
    np.save(tmp_path / "a.npy", PIXELS)
    plain, sized = read_images(tmp_path / "a.npy"), read_images(tmp_path / "a.npy", size=8)
    assert sized.size == 8
    assert sized.part(slice(2)).size == 8
    assert sized.sha256 != plain.sha256
    with pytest.raises(UsageError, match="`image_size` is -1"):
        read_images(tmp_path / "a.npy", size=-1)


@pytest.mark.parametrize("processor", [False, True])
def test_pixels_at_another_size(tmp_path, processor):
    (tmp_path / "config.json").write_text('{"model_type": "vit", "image_size": 24, "patch_size": 4}')
    if processor:
        from transformers import ViTImageProcessor

        made = ViTImageProcessor(size={"height": 24, "width": 24}, image_mean=[0.5] * 3, image_std=[0.5] * 3)
        made.save_pretrained(tmp_path)
    source = SimpleNamespace(path=tmp_path, config={"image_size": 24, "patch_size": 4})
    one = np.full((1, 16, 16, 3), 255, np.uint8)
    for size, expected in ((None, 24), (16, 16), (12, 12)):
        transform = PixelTransform(source, size)
        found = transform(one)
        assert found.shape == (1, 3, expected, expected)
        assert transform.interpolates == (expected != 24)
        white = (
            [1.0] * 3
            if processor
            else [(1 - m) / s for m, s in zip((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), strict=True)]
        )
        assert found[0, :, 3, 5].tolist() == pytest.approx(white, abs=1e-5)
