"""Images with classes, read from files and split."""

import numpy as np
import pytest

from gqakit.data.labelled import read_labelled_images, split_images
from gqakit.errors import DataError

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (6, 8, 8, 3), dtype=np.uint8)
LABELS = np.array([2, 0, 1, 1, 0, 2], dtype=np.uint8)


def test_an_archive(tmp_path):
    np.savez(tmp_path / "a.npz", images=PIXELS, labels=LABELS, classes=np.array(["cat", "dog", "owl"]))
    found = read_labelled_images(tmp_path / "a.npz")
    assert np.array_equal(found.images.pixels, PIXELS)
    assert found.labels.tolist() == LABELS.tolist()
    assert found.classes == ("cat", "dog", "owl")
    some = found.take([5, 1])
    assert some.labels.tolist() == [2, 0]
    assert np.array_equal(some.images.pixels, PIXELS[[5, 1]])
    np.savez(tmp_path / "b.npz", images=PIXELS, y=(LABELS + 1) % 3)
    other = read_labelled_images(tmp_path / "b.npz")
    assert other.classes == ("0", "1", "2")
    assert other.sha256 != found.sha256 == read_labelled_images(tmp_path / "a.npz").sha256


def test_a_folder_of_folders(tmp_path):
    image = pytest.importorskip("PIL.Image")
    for name, pixels in zip(["owl/b", "cat/z", "owl/a"], PIXELS, strict=False):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        image.fromarray(pixels).save(tmp_path / f"{name}.png")
    found = read_labelled_images(tmp_path)
    assert found.classes == ("cat", "owl")
    assert found.labels.tolist() == [0, 1, 1]
    assert np.array_equal(found.images.pixels, PIXELS[[1, 2, 0]])
    image.fromarray(PIXELS[0]).save(tmp_path / "loose.png")
    with pytest.raises(
        DataError, match=r"a folder of images for each class; 1 images lie in it directly.*loose\.png"
    ):
        read_labelled_images(tmp_path)


@pytest.mark.parametrize(
    ("arrays", "says"),
    [
        ({"images": PIXELS}, "holds no labels: expected an array called labels or .* seen images"),
        ({"images": PIXELS, "labels": LABELS[:4]}, r"integer labels for 6 images, seen uint8 \[4\]"),
        ({"images": PIXELS, "labels": LABELS / 2}, r"seen float64 \[6\]"),
        (
            {"images": PIXELS, "labels": LABELS, "classes": np.array(["a", "b"])},
            "from 0 to 2, expected 0 to 1",
        ),
        ({"images": PIXELS[:0], "labels": LABELS[:0]}, "holds no images"),
    ],
)
def test_archives_without_classes(tmp_path, arrays, says):
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(DataError, match=says):
        read_labelled_images(tmp_path / "a.npz")


def test_what_is_nothing(tmp_path):
    (tmp_path / "empty").mkdir()
    for name, says in (("empty", "it holds no images"), ("missing.npz", "is neither an .npz")):
        with pytest.raises(DataError, match=says):
            read_labelled_images(tmp_path / name)


def test_a_split_is_always_the_same_and_leaves_nothing_out(tmp_path):
    np.savez(tmp_path / "a.npz", images=PIXELS, labels=np.arange(6))
    found = read_labelled_images(tmp_path / "a.npz")
    train, held_out = split_images(found, 2)
    assert (len(train), len(held_out)) == (4, 2)
    assert sorted([*train.labels, *held_out.labels]) == list(range(6))
    assert split_images(found, 2)[1].labels.tolist() == held_out.labels.tolist()
    for count in (0, 6):
        with pytest.raises(
            DataError, match=f"6, of which {count} are to be held out; expected between 1 and 5"
        ):
            split_images(found, count)
