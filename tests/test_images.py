from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mobilevit_coreml import images
from mobilevit_coreml.errors import InputError
from mobilevit_coreml.images import images_in, read_image, synthetic_images


def test_synthetic_images_are_the_same_each_time_and_all_different() -> None:
    first, again = (np.stack([np.asarray(image) for image in synthetic_images(40, 60)]) for _ in range(2))
    assert first.shape == (8, 40, 60, 3)
    assert np.array_equal(first, again)
    assert len({picture.tobytes() for picture in first}) == 8


def test_synthetic_images_have_more_than_noise() -> None:
    for image in synthetic_images(128, 128):
        values = np.asarray(image).astype(float)
        neighbours = np.abs(np.diff(values, axis=1))
        assert np.median(neighbours) < 25  # smooth for the most part
        assert neighbours.max() > 60  # with edges
        assert values.std() > 30  # over much of the range


def test_pictures_of_a_directory_come_by_name(tmp_path: Path) -> None:
    for name in ("b.JPG", "a.png", "c.txt", "d.webp"):
        (tmp_path / name).touch()
    (tmp_path / "e.png").mkdir()
    assert [path.name for path in images_in(tmp_path)] == ["a.png", "b.JPG", "d.webp"]
    assert images_in(str(tmp_path)) == images_in(tmp_path)


def test_a_directory_without_pictures(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"expected images \(.jpg .jpeg .png .* got none; check the directory"):
        images_in(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="expected a directory of images, got Not a directory"):
        images_in(tmp_path / "file")


def test_pictures_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="expected an image Pillow can read, got No such file or directory"):
        read_image(tmp_path / "none.png")
    (tmp_path / "x.png").write_bytes(b"\x89PNG\r\n\x1a\n and then nothing")
    with pytest.raises(InputError, match=r"x.png: expected an image Pillow can read, got .*; check the file"):
        read_image(tmp_path / "x.png")
    synthetic_images(64, 64)[0].save(tmp_path / "cut.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "cut.png").read_bytes()[:-3000])
    with pytest.raises(InputError, match=r"cut.png: expected an image Pillow can read, got .*truncated"):
        read_image(tmp_path / "cut.png")
    monkeypatch.setattr(images, "MAX_PIXELS", 100)
    Image.new("L", (20, 20)).save(tmp_path / "large.png")
    with pytest.raises(InputError, match="large.png: expected at most 100 pixels, got 20x20; scale it down"):
        read_image(tmp_path / "large.png")
