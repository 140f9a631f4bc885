"""Preprocessing against its owners: timm's transform on the same file, TensorFlow's operations on the same pixels."""

import os

import numpy as np
import pytest
from conftest import SHARED
from hypothesis import given, settings
from hypothesis import strategies as st

from porter.errors import PorterError
from porter.evaluation.dataset import find_labelled
from porter.network.spec import Input
from porter.parity import samples
from porter.photos.images import FORMATS, PHOTO_SUFFIXES, expand, find_photos, normalized, read_image, resized

PIL = pytest.importorskip("PIL.Image")
HALF = [0.5, 0.5, 0.5]
PHOTOS = SHARED.parent / "real" / "images"


def picture(height, width, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return PIL.fromarray(pixels)


def prepared(image, how, size=(224, 224), crop=0.875):
    return normalized(resized(image, size, crop, how), HALF, HALF)


@pytest.fixture
def timm_transform(timm):
    from timm.data import create_transform

    return create_transform(224, interpolation="bilinear", mean=HALF, std=HALF, crop_pct=0.875)


def tensorflow_preprocessing(tf, image, how):
    """slim's preprocess_for_eval, and the same with today's operations."""
    x = tf.image.central_crop(tf.image.convert_image_dtype(np.asarray(image), tf.float32), 0.875)
    if how == "tf":
        x = tf.compat.v1.image.resize_bilinear(x[None], [224, 224], align_corners=False)[0]
    else:
        x = tf.image.resize(x, [224, 224], antialias=False)
    return ((x - 0.5) * 2).numpy()


SIZES = [(224, 224), (500, 375), (333, 500), (120, 90), (256, 256), (7, 900), (1, 1), (2048, 17)]


@pytest.mark.parametrize("size", [size for size in SIZES if max(size) < 20 * min(size)])  # strips grow to gigapixels
def test_card_is_timms_transform(timm_transform, size):
    image = picture(*size)
    assert np.array_equal(prepared(image, "card"), timm_transform(image).permute(1, 2, 0).numpy())


@pytest.mark.parametrize("how", ["tf", "tf2"])
@pytest.mark.parametrize("size", SIZES)
def test_tensorflows_own(tf, size, how):
    image = picture(*size)
    assert np.abs(prepared(image, how) - tensorflow_preprocessing(tf, image, how)).max() <= 1e-6


@given(st.integers(1, 400), st.integers(1, 400), st.integers(0, 9))
@settings(max_examples=25, deadline=None)
def test_tensorflows_own_at_any_size(height, width, seed):
    tf = pytest.importorskip("tensorflow")
    image = picture(height, width, seed)
    for how in ("tf", "tf2"):
        assert np.abs(prepared(image, how) - tensorflow_preprocessing(tf, image, how)).max() <= 1e-6


@pytest.mark.skipif(not PHOTOS.is_dir(), reason=f"no photos at {PHOTOS} (set MNV3_CHECKPOINTS)")
def test_real_photos(tf, timm_transform):
    """Grey, CMYK and very large ones among them."""
    for path in sorted(PHOTOS.iterdir())[::6]:
        image = read_image(path)
        assert np.array_equal(prepared(image, "card"), timm_transform(image).permute(1, 2, 0).numpy()), path
        for how in ("tf", "tf2"):
            assert np.abs(prepared(image, how) - tensorflow_preprocessing(tf, image, how)).max() <= 1e-6, path


@pytest.mark.parametrize(("mean", "std"), [(HALF, HALF), ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])])
def test_normalisation(mean, std):
    pixels = np.random.default_rng(0).integers(0, 256, (2, 5, 4, 3), dtype=np.uint8)
    plain = (pixels.astype(np.float32) / np.float32(255) - np.float32(mean)) / np.float32(std)
    assert np.array_equal(normalized(pixels, mean, std), plain)


@pytest.mark.parametrize("how", ["card", "tf", "tf2"])
def test_any_target_size(how):
    assert resized(picture(50, 70), (160, 193), 0.875, how).shape == (160, 193, 3)


def test_unreadable(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"\xff\xd8\xff\xe0 cut")
    with pytest.raises(PorterError, match=r"a\.jpg: not a readable image"):
        read_image(tmp_path / "a.jpg")
    with pytest.raises(PorterError, match=r"none\.jpg: not a readable image"):
        read_image(tmp_path / "none.jpg")


@pytest.mark.parametrize("suffix", ["png", "tiff"])
def test_sixteen_bits(tf, tmp_path, suffix):
    """A ramp from black to white stays one; the higher eight bits, as TensorFlow's decoder takes them."""
    ramp = np.arange(0, 1 << 16, 257, dtype=np.uint16).reshape(8, 32)
    ramp[0, 1] = 511
    path = tmp_path / f"ramp.{suffix}"
    PIL.fromarray(ramp).save(path)
    PIL.fromarray(ramp).save(tmp_path / "ramp.png")
    expected = tf.io.decode_png((tmp_path / "ramp.png").read_bytes(), channels=3).numpy()
    assert np.array_equal(np.asarray(read_image(path)), expected)
    assert expected.max() == 255


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_thirty_two_bits_are_refused(tmp_path, dtype):
    path = tmp_path / "depth.tiff"
    PIL.fromarray(np.linspace(0, 65535, 64).astype(dtype).reshape(8, 8)).save(path)
    with pytest.raises(PorterError, match=r"depth\.tiff: an image of 32-bit values, .* save it with 8 or 16 bits"):
        read_image(path)


def test_a_pipe_with_the_name_of_a_photo(tmp_path):
    """Nobody writes to it: reading would wait for ever."""
    os.mkfifo(tmp_path / "a.jpg")
    with pytest.raises(PorterError, match=r"a\.jpg: not a regular file"):
        read_image(tmp_path / "a.jpg")


def test_one_finder_of_photos(tmp_path, monkeypatch):
    """A folder called x.jpg is no photo, whoever looks; suffixes are those of the formats that are read, in any case."""
    (tmp_path / "x.jpg" / "below").mkdir(parents=True)
    for name in ("b.TIF", "a.png", "x.jpg/below/c.Jpeg", "notes.txt"):
        (tmp_path / name).touch()
    found = [tmp_path / name for name in ("a.png", "b.TIF", "x.jpg/below/c.Jpeg")]
    assert find_photos(tmp_path) == expand([str(tmp_path)]) == found
    for row, path in enumerate(found):
        (tmp_path / "labels.csv").write_text(f"{path.relative_to(tmp_path)},{row}\n")
        assert find_labelled(tmp_path, tmp_path / "labels.csv") == [(path, row)]
    read = []
    monkeypatch.setattr(samples, "read_image", lambda path: read.append(path) or PIL.new("RGB", (8, 8)))
    samples.photos(tmp_path, (8, 8), Input(8, 3, [0.5] * 3, [0.5] * 3, 1.0))
    assert read == found
    for path in found:
        path.unlink()
    for find in (find_photos, find_labelled, lambda folder: samples.photos(folder, (8, 8), None)):
        with pytest.raises(PorterError, match=r"no images \(\.jpg, .*\.tiff\) in this folder or below it"):
            find(tmp_path)
        with pytest.raises(PorterError, match="no such folder"):
            find_photos(tmp_path / "none")


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_has_a_suffix(kind):
    assert any(suffix in PHOTO_SUFFIXES for suffix, name in PIL.registered_extensions().items() if name == kind)
    assert all(PIL.registered_extensions()[suffix] in FORMATS for suffix in PHOTO_SUFFIXES)
