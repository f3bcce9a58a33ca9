"""Reading of image files, and synthetic images to verify packages with."""

import contextlib
import logging
import os
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from mobilevit_coreml.errors import InputError, os_error_text

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif")
MAX_PIXELS = 150_000_000  # of one image: more than most cameras have, 450 MB as RGB
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "PPM")  # not EPS, for which Pillow runs Ghostscript
SYNTHETIC_COUNT = 8
SEED = 0
_STDERR = threading.Lock()  # file descriptor 2 is shared by all threads
logging.getLogger("PIL").addHandler(logging.NullHandler())  # otherwise decoders log to stderr what they also raise


def read_image(path: str | os.PathLike[str]) -> Image.Image:
    """Decoded image; raises InputError for unreadable or truncated files and more than MAX_PIXELS."""
    try:
        # Pillow's warnings are about errors that follow, or about large images
        with warnings.catch_warnings(action="ignore"), Image.open(path, formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise InputError(
                    f"image {path}: expected at most {MAX_PIXELS} pixels, got {image.width}x{image.height}; "
                    "scale it down"
                )
            with _silent_libtiff() if image.format == "TIFF" else contextlib.nullcontext():
                image.load()
            return image
    except InputError:
        raise
    except Exception as error:  # decoders raise all kinds of exceptions for damaged files
        raise InputError(
            f"image {path}: expected an image Pillow can read, got {os_error_text(error)}; check the file"
        ) from None


@contextlib.contextmanager
def _silent_libtiff() -> Iterator[None]:
    """Redirect file descriptor 2: libtiff writes errors there that Pillow raises afterwards."""
    with _STDERR:
        stderr = os.dup(2)
        try:
            with Path(os.devnull).open("wb") as null:
                os.dup2(null.fileno(), 2)
            yield
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)


def images_in(directory: str | os.PathLike[str]) -> list[Path]:
    """Paths of the image files in a directory, sorted by name; raises InputError if there are none."""
    try:
        entries = sorted(Path(directory).iterdir())
        paths = [path for path in entries if path.suffix.lower() in SUFFIXES and path.is_file()]
    except OSError as error:
        raise InputError(
            f"images {directory}: expected a directory of images, got {os_error_text(error)}; check the path"
        ) from None
    if not paths:
        raise InputError(f"images {directory}: expected images ({' '.join(SUFFIXES)}), got none; check the directory")
    return paths


def synthetic_images(height: int, width: int, count: int = SYNTHETIC_COUNT) -> list[Image.Image]:
    """Deterministic RGB images with gradients, shapes at several scales, texture and noise.

    Activations of a network for pure noise would be unlike those for photographs.
    """
    rng = np.random.default_rng(SEED)
    y, x = np.meshgrid(np.linspace(0, 1, height), np.linspace(0, 1, width), indexing="ij")
    images = []
    for _ in range(count):
        colors = rng.uniform(0, 255, (4, 3))
        corners = [(1 - x) * (1 - y), x * (1 - y), (1 - x) * y, x * y]
        image = sum(weight[..., None] * color for weight, color in zip(corners, colors, strict=True))
        for _ in range(12):
            center, radius = rng.uniform(0, 1, 2), rng.uniform(0.02, 0.3, 2)
            inside = ((x - center[0]) / radius[0]) ** 2 + ((y - center[1]) / radius[1]) ** 2 < 1
            if rng.random() < 0.5:
                inside = (np.abs(x - center[0]) < radius[0]) & (np.abs(y - center[1]) < radius[1])
            image = np.where(inside[..., None], rng.uniform(0, 255, 3), image)
        waves = np.sin(2 * np.pi * (rng.uniform(4, 40) * x + rng.uniform(4, 40) * y))
        image = image + rng.uniform(5, 30) * waves[..., None] + rng.normal(0, rng.uniform(2, 15), (height, width, 3))
        images.append(Image.fromarray(np.clip(image, 0, 255).astype(np.uint8)))
    return images
