"""Images: the user's, read safely, and the ones drawn to verify a package where there are none."""

import contextlib
import logging
import os
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from mobilevit_coreml.errors import InputError

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif")
MAX_PIXELS = 150_000_000  # of one image; past most cameras, 450 MB as RGB
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "PPM")  # no EPS: Pillow would call Ghostscript for it
SYNTHETIC_COUNT = 8  # images in the fixed set
SEED = 0
_STDERR = threading.Lock()  # there is one for all threads
logging.getLogger("PIL").addHandler(logging.NullHandler())  # else what its decoders log and raise is on stderr, too


def read_image(path: Path) -> Image.Image:
    """A decoded image; raises InputError for what is none, is truncated, or is larger than MAX_PIXELS."""
    try:
        # an error says it in one line, and large ones are bounded below
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
    except Exception as error:  # Pillow's decoders raise what their formats happen to break
        reason = error.strerror if isinstance(error, OSError) and error.strerror else " ".join(str(error).split())[:100]
        raise InputError(
            f"image {path}: expected an image Pillow can read, got {reason or type(error).__name__}; check the file"
        ) from None


@contextlib.contextmanager
def _silent_libtiff() -> Iterator[None]:
    """Nothing on stderr: libtiff writes there itself, past Python, what Pillow raises afterwards."""
    with _STDERR:
        kept = os.dup(2)
        try:
            with Path(os.devnull).open("wb") as nowhere:
                os.dup2(nowhere.fileno(), 2)
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)


def images_in(directory: Path) -> list[Path]:
    """The images in a directory, by name; raises InputError when there are none."""
    try:
        paths = sorted(path for path in directory.iterdir() if path.suffix.lower() in SUFFIXES and path.is_file())
    except OSError as error:
        raise InputError(
            f"images {directory}: expected a directory of images, got {error.strerror}; check the path"
        ) from None
    if not paths:
        raise InputError(f"images {directory}: expected images ({' '.join(SUFFIXES)}), got none; check the directory")
    return paths


def synthetic_images(height: int, width: int, count: int = SYNTHETIC_COUNT) -> list[Image.Image]:
    """RGB images with what photographs have: smooth areas, edges, shapes at several scales, texture, noise.

    The same ones each time. Noise alone would excite a network as no photograph does.
    """
    rng = np.random.default_rng(SEED)
    y, x = np.meshgrid(np.linspace(0, 1, height), np.linspace(0, 1, width), indexing="ij")
    images = []
    for _ in range(count):
        colours = rng.uniform(0, 255, (4, 3))
        corners = [(1 - x) * (1 - y), x * (1 - y), (1 - x) * y, x * y]
        image = sum(weight[..., None] * colour for weight, colour in zip(corners, colours, strict=True))
        for _ in range(12):
            centre, radius = rng.uniform(0, 1, 2), rng.uniform(0.02, 0.3, 2)
            inside = ((x - centre[0]) / radius[0]) ** 2 + ((y - centre[1]) / radius[1]) ** 2 < 1
            if rng.random() < 0.5:
                inside = (np.abs(x - centre[0]) < radius[0]) & (np.abs(y - centre[1]) < radius[1])
            image = np.where(inside[..., None], rng.uniform(0, 255, 3), image)
        waves = np.sin(2 * np.pi * (rng.uniform(4, 40) * x + rng.uniform(4, 40) * y))
        image = image + rng.uniform(5, 30) * waves[..., None] + rng.normal(0, rng.uniform(2, 15), (height, width, 3))
        images.append(Image.fromarray(np.clip(image, 0, 255).astype(np.uint8)))
    return images
