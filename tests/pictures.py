"""Encoded images for tests: good ones, and every kind of dirt that sets contain."""

import io
import tarfile

import numpy as np
from PIL import Image


def photograph(seed, height=60, width=80, channels=3):
    """Smooth colours with some texture, uint8 [height, width, channels]."""
    random = np.random.default_rng(seed)
    coarse = random.integers(0, 255, (4, 5, channels)).astype(np.uint8)
    smooth = [
        Image.fromarray(coarse[..., c]).resize(
            (width, height), Image.Resampling.BICUBIC
        )
        for c in range(channels)
    ]
    noise = random.integers(-8, 9, (height, width, channels))
    return np.clip(np.stack(smooth, axis=-1) + noise, 0, 255).astype(np.uint8)


def encoded(pixels, kind="JPEG", **options):
    image = Image.fromarray(pixels) if isinstance(pixels, np.ndarray) else pixels
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def dirty_records():
    """{name: (bytes, whether they hold an image)}; all bear the name of a JPEG."""
    pixels = photograph(0, 90, 120)
    good = encoded(pixels)
    deep = Image.fromarray(photograph(1, channels=1)[..., 0].astype(np.int32) * 257)
    return {
        "plain": (good, True),
        "cut in half": (good[: len(good) // 2], False),
        "last two bytes missing": (good[:-2], False),
        "bytes after the end": (good + b"\0\0 trailing", True),
        "header only": (good[:12], False),
        "empty": (b"", False),
        "garbage": (b"\xff\xd8\xff" + bytes(range(256)) + b"\xff\xd9", False),
        "text": (b"<html>404</html>", False),
        "cmyk": (encoded(Image.fromarray(pixels).convert("CMYK")), True),
        "grey": (encoded(Image.fromarray(pixels).convert("L")), True),
        "progressive": (encoded(pixels, progressive=True), True),
        "png": (encoded(pixels, "PNG"), True),
        "png cut in half": (encoded(pixels, "PNG")[:2000], False),
        "png of 16 bits": (encoded(deep.convert("I;16"), "PNG"), True),
        "webp": (encoded(pixels, "WEBP"), True),
        "gif": (encoded(Image.fromarray(pixels).quantize(16), "GIF"), True),
        "bmp": (encoded(pixels, "BMP"), True),
        "bmp of numbers": (encoded(Image.fromarray(pixels).quantize(9), "BMP"), False),
        "one pixel": (encoded(pixels[:1, :1]), True),
        "a line": (encoded(photograph(2, 1, 900)), True),
    }


def add_to(archive, name, data):
    info = tarfile.TarInfo(name)
    info.size = len(data)
    archive.addfile(info, io.BytesIO(data))


def imagenet_tars(folder, train, validation):
    """ImageNet's two archives. train: {synset: {name: bytes}}; validation: [bytes]."""
    folder.mkdir(parents=True, exist_ok=True)
    with tarfile.open(folder / "ILSVRC2012_img_train.tar", "w") as archive:
        for synset, images in train.items():
            inner = io.BytesIO()
            with tarfile.open(fileobj=inner, mode="w") as class_archive:
                for name, data in images.items():
                    add_to(class_archive, name, data)
            add_to(archive, f"{synset}.tar", inner.getvalue())
    with tarfile.open(folder / "ILSVRC2012_img_val.tar", "w") as archive:
        for number, data in enumerate(validation, 1):
            add_to(archive, f"ILSVRC2012_val_{number:08d}.JPEG", data)
