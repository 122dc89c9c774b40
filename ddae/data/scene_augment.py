"""Joint augmentation of an image and the labels of its pixels, in NumPy and Pillow.

Images are uint8 [h, w, 3]; labels int32 [h, w], IGNORED where a pixel has none.
"""

import dataclasses

import numpy as np
from jaxtyping import Int, UInt8
from PIL import Image

IGNORED = -1
"""The label of a pixel that has none."""

TRIES = 10
"""Crops looked at before one is taken whatever it shows."""

Pixels = UInt8[np.ndarray, "h w 3"]
Labels = Int[np.ndarray, "h w"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class SceneSettings:
    """Which classes a set of scenes has, and how training crops are cut of it.

    num_classes: files say 0 for none and 1 to num_classes. names: of the classes; ()
    takes those of objectInfo150.txt where the set has it. scale: (long, short) side
    within which an image is fitted, its proportions kept, times a factor of `ratio`;
    (0, 0) takes the factor of the image's own size. max_share: a crop in which one
    class has a larger part of the labelled pixels is cut anew. photometric:
    brightness, contrast, saturation and hue move too.
    """

    num_classes: int
    names: tuple[str, ...] = ()
    scale: tuple[int, int] = (2048, 512)
    ratio: tuple[float, float] = (0.5, 2.0)
    max_share: float = 0.75
    photometric: bool = True

    def __post_init__(self):
        if not 2 <= self.num_classes <= 1000:
            raise ValueError(f"num_classes={self.num_classes} is not in 2 to 1000")
        if self.names and len(self.names) != self.num_classes:
            raise ValueError(
                f"names has {len(self.names)} entries for {self.num_classes} classes"
            )
        if not 0.0 < self.ratio[0] <= self.ratio[1]:
            raise ValueError(f"ratio={self.ratio} is not an increasing positive pair")
        if not sides(self.scale):
            raise ValueError(f"scale={self.scale} is not a pair of sides")
        if not 0.0 < self.max_share <= 1.0:
            raise ValueError(f"max_share={self.max_share} is not in (0, 1]")


def sides(scale: tuple[int, ...]) -> bool:
    """Whether `fitted` takes them: two that are positive, or (0, 0)."""
    return tuple(scale) == (0, 0) or len(scale) == 2 and min(scale) > 0


def fitted(shape: tuple[int, int], scale: tuple[int, int]) -> tuple[int, int]:
    """(height, width) of an image of `shape` in the (long, short) sides of `scale`, as
    large as fits with its proportions kept; (0, 0) leaves it."""
    long, short = max(scale), min(scale)
    if not long:
        return shape
    factor = min(long / max(shape), short / min(shape))
    height, width = (max(1, int(side * factor + 0.5)) for side in shape)
    return height, width


def resized(image: Pixels, shape: tuple[int, ...]) -> Pixels:
    """`image` at (height, width): bilinear, averaging where it shrinks (Pillow's;
    mmsegmentation's OpenCV does not average)."""
    if image.shape[:2] == tuple(shape):
        return image
    size = (shape[1], shape[0])
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR))


def resized_labels(labels: Labels, shape: tuple[int, ...]) -> Labels:
    """Nearest: the label at the centre of each new pixel."""
    if labels.shape == tuple(shape):
        return labels
    rows, columns = (
        ((np.arange(new) + 0.5) * old / new).astype(int)
        for old, new in zip(labels.shape, shape, strict=True)
    )
    return labels[np.ix_(rows, columns)]


def augmented(
    image: Pixels,
    labels: Labels,
    crop: tuple[int, int],
    settings: SceneSettings,
    flip: bool,
    fill: UInt8[np.ndarray, "3"],
    random: np.random.Generator,
) -> tuple[UInt8[np.ndarray, "ch cw 3"], Int[np.ndarray, "ch cw"]]:
    """Resized by a random ratio, cut to `crop`, flipped, its colours moved.

    What of the crop lies outside a smaller image is `fill`, and ignored. The recipe is
    mmsegmentation's for ADE20K.
    """
    factor = random.uniform(*settings.ratio)
    if max(settings.scale):
        scale = tuple(int(side * factor + 0.5) for side in settings.scale)
        shape = fitted(labels.shape, (scale[0], scale[1]))
    else:
        height, width = (max(1, int(side * factor + 0.5)) for side in labels.shape)
        shape = (height, width)
    whole = resized_labels(labels, shape)
    top, left = _corner(whole, crop, settings.max_share, random)
    found = whole[top : top + crop[0], left : left + crop[1]]
    pixels = _window(image, shape, (top, left), found.shape)
    if flip and random.random() < 0.5:
        pixels, found = pixels[:, ::-1], found[:, ::-1]
    if settings.photometric:
        pixels = photometric(pixels, random)
    return padded(pixels, found, crop, fill)


def padded(
    image: Pixels, labels: Labels, shape: tuple[int, int], fill: UInt8[np.ndarray, "3"]
) -> tuple[UInt8[np.ndarray, "ch cw 3"], Int[np.ndarray, "ch cw"]]:
    """Both, with `fill` and IGNORED below and to the right up to `shape`."""
    h, w = labels.shape
    if (h, w) == tuple(shape):
        return image, labels
    pixels = np.empty((*shape, 3), np.uint8)
    pixels[:] = fill
    pixels[:h, :w] = image
    known = np.full(shape, IGNORED, labels.dtype)
    known[:h, :w] = labels
    return pixels, known


def _corner(
    labels: Labels,
    crop: tuple[int, int],
    max_share: float,
    random: np.random.Generator,
) -> tuple[int, int]:
    """A random crop that shows at least two classes, none of which has more than
    `max_share` of the labelled pixels; after TRIES crops the last one."""
    spare = [max(0, have - want) for have, want in zip(labels.shape, crop, strict=True)]
    top = left = 0
    for _ in range(TRIES):
        top, left = (int(random.integers(0, room + 1)) for room in spare)
        cut = labels[top : top + crop[0], left : left + crop[1]]
        counts = np.bincount(cut[cut != IGNORED])
        if (counts > 0).sum() > 1 and counts.max() < max_share * counts.sum():
            break
    return top, left


def _window(
    image: Pixels,
    shape: tuple[int, int],
    corner: tuple[int, int],
    size: tuple[int, int],
) -> Pixels:
    """The window of `size` at `corner` of `image` resized to `shape`, at the cost of
    the window alone."""
    scales = [old / new for old, new in zip(image.shape[:2], shape, strict=True)]
    (top, left), (height, width) = corner, size
    box = (
        left * scales[1],
        top * scales[0],
        min((left + width) * scales[1], image.shape[1]),
        min((top + height) * scales[0], image.shape[0]),
    )
    picture = Image.fromarray(image)
    return np.asarray(picture.resize((width, height), Image.Resampling.BILINEAR, box))


def photometric(image: Pixels, random: np.random.Generator) -> Pixels:
    """Brightness by up to 32 levels, contrast and saturation by a factor of .5 to 1.5,
    hue by up to a tenth of the circle; each with probability one half, contrast
    before or after the other two (SSD's, as in mmsegmentation)."""

    def chosen() -> bool:
        return bool(random.random() < 0.5)

    if chosen():
        image = _moved(image, 1.0, random.uniform(-32, 32))
    contrast_first, contrast = chosen(), chosen()
    factor = random.uniform(0.5, 1.5)
    if contrast and contrast_first:
        image = _moved(image, factor, 0.0)
    saturation = random.uniform(0.5, 1.5) if chosen() else 1.0
    turn = random.uniform(-18, 18) / 180 if chosen() else 0.0
    if saturation != 1.0 or turn:
        image = _coloured(image, saturation, turn)
    if contrast and not contrast_first:
        image = _moved(image, factor, 0.0)
    return image


def _moved(image: Pixels, factor: float, shift: float) -> Pixels:
    table = np.clip(np.arange(256) * factor + shift, 0, 255).astype(np.uint8)
    return table[image]


def _coloured(image: Pixels, saturation: float, turn: float) -> Pixels:
    """turn: of the hue, as a share of the circle."""
    hsv = np.array(Image.fromarray(np.ascontiguousarray(image)).convert("HSV"))
    levels = np.arange(256)
    hues = ((levels + round(turn * 256)) % 256).astype(np.uint8)
    hsv[..., 0] = hues[hsv[..., 0]]
    hsv[..., 1] = np.clip(levels * saturation, 0, 255).astype(np.uint8)[hsv[..., 1]]
    return np.asarray(Image.fromarray(hsv, "HSV").convert("RGB"))
