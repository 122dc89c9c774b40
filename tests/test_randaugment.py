"""Every operation against Pillow, what is drawn, and that seeds decide everything."""

import functools

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps
from sklearn.datasets import load_sample_image

from ddae.data import randaugment
from ddae.data.decode import tensorflow

# TensorFlow's own Python, not ours, warns while it traces a function.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

PILLOW = {  # of (image, level m in [0, 10], s: the level or its negative)
    "AutoContrast": lambda x, m, s: ImageOps.autocontrast(x),
    "Equalize": lambda x, m, s: ImageOps.equalize(x),
    "Invert": lambda x, m, s: ImageOps.invert(x),
    "Rotate": lambda x, m, s: x.rotate(s / 10 * 30, **BILINEAR),
    "PosterizeIncreasing": lambda x, m, s: posterize(x, 4 - int(m / 10 * 4)),
    "SolarizeIncreasing": lambda x, m, s: ImageOps.solarize(
        x, 256 - min(256, int(m / 10 * 256))
    ),
    "SolarizeAdd": lambda x, m, s: solarize_add(x, min(128, int(m / 10 * 110))),
    "ColorIncreasing": lambda x, m, s: enhance(ImageEnhance.Color, x, s),
    "ContrastIncreasing": lambda x, m, s: enhance(ImageEnhance.Contrast, x, s),
    "BrightnessIncreasing": lambda x, m, s: enhance(ImageEnhance.Brightness, x, s),
    "SharpnessIncreasing": lambda x, m, s: enhance(ImageEnhance.Sharpness, x, s),
    "ShearX": lambda x, m, s: affine(x, (1, s / 10 * 0.3, 0, 0, 1, 0)),
    "ShearY": lambda x, m, s: affine(x, (1, 0, 0, s / 10 * 0.3, 1, 0)),
    "TranslateXRel": lambda x, m, s: affine(x, (1, 0, s * 0.045 * x.width, 0, 1, 0)),
    "TranslateYRel": lambda x, m, s: affine(x, (1, 0, 0, 0, 1, s * 0.045 * x.height)),
}
BILINEAR = {"resample": Image.Resampling.BILINEAR, "fillcolor": (124, 116, 104)}
SLACK = {  # levels that all but a share of the pixels may be off
    "ColorIncreasing": (1, 0.0),
    "ContrastIncreasing": (1, 0.0),
    "BrightnessIncreasing": (1, 0.0),
    "SharpnessIncreasing": (1, 0.0),
    "Rotate": (1, 1e-3),
    "ShearX": (1, 1e-3),
    "ShearY": (1, 1e-3),
    "TranslateXRel": (1, 1e-3),
    "TranslateYRel": (1, 1e-3),
}
"""Factors and places are float32 here, double there, and results are truncated."""


def enhance(enhancer, image, signed):
    return enhancer(image).enhance(max(0.1, 1 + signed / 10 * 0.9))


def affine(image, matrix):
    return image.transform(image.size, Image.Transform.AFFINE, matrix, **BILINEAR)


def posterize(image, bits):
    """Pillow refuses to keep no bits, which is black."""
    return ImageOps.posterize(image, bits) if bits else Image.new("RGB", image.size)


def solarize_add(image, addend):
    return image.point([v + addend if v < 128 else v for v in range(256)] * 3)


@functools.cache
def pictures():
    """Of a photograph, noise and edge cases; none of them square."""
    random = np.random.default_rng(0)
    coarse = Image.fromarray(random.integers(0, 256, (5, 7, 3)).astype(np.uint8))
    # All but 509 values are the highest: steps of 1 in `equalize`, and a table of 509.
    crowded = np.full((30, 40, 3), 200, np.uint8)
    crowded.reshape(-1, 3)[:509] = random.integers(0, 200, (509, 3))
    return {
        "photograph": load_sample_image("flower.jpg")[150:270, 300:460],
        "smooth": np.asarray(coarse.resize((90, 70), Image.Resampling.BICUBIC)),
        "noise": random.integers(0, 256, (48, 64, 3)).astype(np.uint8),
        "pale": random.integers(100, 117, (40, 50, 3)).astype(np.uint8),
        "constant": np.full((30, 20, 3), (7, 90, 200), np.uint8),
        "crowded": crowded,
        "tiny": random.integers(0, 256, (9, 11, 3)).astype(np.uint8),
    }


def assert_matches(found, expected, levels=0, share=0.0):
    """At most `share` of the pixels are more than `levels` away."""
    found, expected = found.numpy(), np.asarray(expected)
    assert found.dtype == np.uint8 and found.shape == expected.shape
    away = np.abs(found.astype(int) - expected).max(axis=-1)
    assert (away > levels).mean() <= share


def tensor(picture):
    return tensorflow().constant(pictures()[picture])


@pytest.mark.parametrize("picture", pictures())
@pytest.mark.parametrize("name", randaugment.OPERATIONS)
def test_an_operation_at_its_levels_is_pillows(name, picture):
    image = Image.fromarray(pictures()[picture])
    for level in (0, 1, 3.7, 5, 7, 9, 10):
        for sign in (1, -1):
            part = np.float32(level / 10)
            found = randaugment.OPERATIONS[name](tensor(picture), part, sign * part)
            expected = PILLOW[name](image, level, sign * level)
            assert_matches(found, expected, *SLACK.get(name, (0, 0.0)))


def test_the_operations_are_the_fifteen():
    assert set(randaugment.OPERATIONS) == set(PILLOW) and len(PILLOW) == 15


@pytest.mark.parametrize("picture", ["photograph", "noise", "constant"])
@pytest.mark.parametrize("name", ["color", "contrast", "brightness", "sharpness"])
def test_enhancing_by_any_factor_is_pillows(name, picture):
    enhancer = getattr(ImageEnhance, name.capitalize())
    for factor in (0.0, 0.33, 0.999, 1.0, 1.001, 1.9, 5.0):
        found = getattr(randaugment, name)(tensor(picture), factor)
        expected = enhancer(Image.fromarray(pictures()[picture])).enhance(factor)
        assert_matches(found, expected)


def test_point_operations_at_the_ends_of_their_ranges_are_pillows():
    values = np.arange(256 * 3).reshape(16, 16, 3).astype(np.uint8)
    image, pillow = tensorflow().constant(values), Image.fromarray(values)
    for bits in range(9):
        assert_matches(randaugment.posterize(image, bits), posterize(pillow, bits))
    for threshold in (0, 1, 255, 256):
        expected = ImageOps.solarize(pillow, threshold)
        assert_matches(randaugment.solarize(image, threshold), expected)
    for addend in (0, 1, 128):
        expected = solarize_add(pillow, addend)
        assert_matches(randaugment.solarize_add(image, addend), expected)


@pytest.mark.parametrize("lows", [(0, 1, 2), (3, 17, 50), (90, 120, 200)])
def test_autocontrast_rounds_as_pillow_does(lows):
    for high in (201, 222, 239, 254, 255):
        ramps = [np.linspace(low, high, 256).astype(np.uint8) for low in lows]
        values = np.stack(ramps, axis=-1).reshape(16, 16, 3)
        expected = ImageOps.autocontrast(Image.fromarray(values))
        found = randaugment.autocontrast(tensorflow().constant(values))
        assert_matches(found, expected)


def test_what_comes_in_is_the_mean_colour_of_imagenet():
    found = randaugment.translate(tensor("noise"), 1.0, 0.0)
    assert (found.numpy() == np.round(255 * np.array([0.485, 0.456, 0.406]))).all()


@pytest.mark.parametrize("picture", ["photograph", "smooth", "noise"])
@pytest.mark.parametrize(
    "matrix",
    [
        (0.9, 0.2, 3.3, -0.1, 1.2, -7.5),
        (-1.0, 0.0, 60.0, 0.0, 1.0, 0.0),
        (0.5, 0.0, -0.5, 0.0, 0.5, 0.25),
    ],
)
def test_an_affine_map_is_pillows(matrix, picture):
    expected = affine(Image.fromarray(pictures()[picture]), matrix)
    assert_matches(randaugment.affine(tensor(picture), matrix), expected, 1, 1e-3)


def test_at_level_0_geometry_and_enhancing_change_nothing():
    image, names, kept = tensor("photograph"), list(randaugment.OPERATIONS), 0
    for name in SLACK:
        zero = np.float32(0)
        np.testing.assert_array_equal(
            randaugment.OPERATIONS[name](image, zero, zero), image, err_msg=name
        )
    for seeds in seeds_of(12):  # likewise when drawn
        number = randaugment.draw(seeds, 1, 0.0, 0.0)[0][0]
        if number < 15 and names[number] in SLACK:
            found = randaugment.rand_augment(
                image, seeds, num_ops=1, magnitude=0.0, magnitude_std=0.0
            )
            np.testing.assert_array_equal(found, image, err_msg=names[number])
            kept += 1
    assert kept


def seeds_of(count):
    return np.array([[7, position] for position in range(count)], np.int64)


def augment(image, seeds):
    return randaugment.rand_augment(
        image, seeds, num_ops=2, magnitude=9.0, magnitude_std=0.5
    )


def mapped(function, count):
    """`function` of `count` seeds, in a tf.data graph."""
    dataset = tensorflow().data.Dataset.from_tensor_slices(seeds_of(count))
    return [pixels.numpy() for pixels in dataset.map(function)]


def test_what_is_drawn_is_applied_and_is_a_function_of_the_seeds():
    """The same pixels from tf.data as from one operation after the other."""
    image, operations = tensor("smooth"), list(randaugment.OPERATIONS.values())
    found, seen = mapped(lambda seeds: augment(image, seeds), 60), set()
    for seeds, pixels in zip(seeds_of(60), found, strict=True):
        expected = image
        drawn = randaugment.draw(seeds, 2, 9.0, 0.5)
        for number, level, sign in zip(*drawn, strict=True):
            seen.add(int(number))
            if number < 15:
                part = level / 10.0
                expected = operations[number](expected, part, sign * part)
        np.testing.assert_array_equal(pixels, expected)
    assert seen == set(range(16))
    for seeds, pixels in zip(seeds_of(3), found, strict=False):
        np.testing.assert_array_equal(augment(image, seeds), pixels)
    # About a quarter are left as they are; the first of a pair of seeds matters too.
    assert len({pixels.tobytes() for pixels in found}) > 30
    again = mapped(lambda seeds: augment(image, seeds + [1, 0]), 10)
    assert sum((a != b).any() for a, b in zip(found, again, strict=False)) > 5


def test_images_of_unknown_size():
    tf, seeds = tensorflow(), seeds_of(1)[0]
    signature = [tf.TensorSpec((None, None, 3), tf.uint8)]
    traced = tf.function(lambda image: augment(image, seeds), signature)
    for picture in ("tiny", "noise"):
        found, expected = traced(tensor(picture)), augment(tensor(picture), seeds)
        np.testing.assert_array_equal(found, expected)


@pytest.fixture(scope="module")
def draws():
    """(numbers, levels, signs), [4000, 2] each, of as many seeds."""
    drawn = (
        tensorflow()
        .data.Dataset.from_tensor_slices(seeds_of(4000))
        .map(lambda seeds: randaugment.draw(seeds, 2, 9.0, 0.5))
    )
    return [column.numpy() for column in next(iter(drawn.batch(4000)))]


def test_operations_are_drawn_alike_and_half_of_them_left_out(draws):
    numbers, _, _ = draws
    applied = numbers < 15
    assert numbers.min() == 0 and numbers.max() == 15
    assert 0.47 < applied.mean() < 0.53
    # 4000 draws of 15: 267 each, standard deviation 16.
    counts = np.bincount(numbers[applied], minlength=15)
    assert 200 < counts.min() and counts.max() < 334
    # The second operation does not depend on the first, nor whether it is applied.
    first, second = numbers[applied.all(axis=1)].T
    assert 0.03 < (first == second).mean() < 0.11
    assert 0.22 < applied.all(axis=1).mean() < 0.28


def test_levels_are_clipped_normals_and_signs_even(draws):
    numbers, levels, signs = draws
    assert abs(levels.mean() - 9) < 0.03 and 0.45 < levels.std() < 0.52
    assert levels.max() == 10 and 0.01 < (levels == 10).mean() < 0.04
    assert set(signs.ravel()) == {-1, 1}
    for number in (3, 7, 11, 15):
        assert abs(signs[numbers == number].mean()) < 0.25
    assert abs(np.corrcoef(levels.ravel(), signs.ravel())[0, 1]) < 0.05
    assert abs(np.corrcoef(levels.T)[0, 1]) < 0.08
    applied = numbers < 15  # which operation it is says nothing of how strong
    for strength in (levels[applied], np.abs(levels[applied] - 9)):
        assert abs(np.corrcoef(numbers[applied], strength)[0, 1]) < 0.08
    low = randaugment.draw(seeds_of(1)[0], 200, 0.0, 0.5)[1].numpy()
    assert low.min() == 0 and 0.4 < (low == 0).mean() < 0.6


def test_jitter_is_pillows_brightness_contrast_and_saturation():
    image = tensor("photograph")
    found = mapped(lambda seeds: randaugment.color_jitter(image, seeds, 0.4), 5)
    for seeds, pixels in zip(seeds_of(5), found, strict=True):
        uniform = tensorflow().random.stateless_uniform((3,), seeds, 0.6, 1.4)
        brightness, contrast, saturation = map(float, uniform)
        expected = Image.fromarray(image.numpy())
        expected = ImageEnhance.Brightness(expected).enhance(brightness)
        expected = ImageEnhance.Contrast(expected).enhance(contrast)
        expected = ImageEnhance.Color(expected).enhance(saturation)
        np.testing.assert_array_equal(pixels, expected)
        eager = randaugment.color_jitter(image, seeds, 0.4)
        np.testing.assert_array_equal(pixels, eager)
    still = randaugment.color_jitter(image, seeds_of(1)[0], 0.0)
    np.testing.assert_array_equal(still, image)


@pytest.mark.parametrize("strength, low, high", [(0.4, 60, 140), (2.0, 0, 255)])
def test_jitter_is_uniform_about_1_and_never_negative(strength, low, high):
    """Of an even grey only the brightness changes."""
    grey = np.full((2, 2, 3), 100, np.uint8)
    found = mapped(lambda seeds: randaugment.color_jitter(grey, seeds, strength), 500)
    values = np.array([pixels[0, 0, 0] for pixels in found], int)
    assert low <= values.min() < low + 3 and high - 3 < values.max() <= high
    assert (values == low).mean() < 0.1
