"""Resizing, cropping and resampling of the last two dimensions (height, width)."""

import math
from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from mobilevit_coreml.errors import UnsupportedError
from mobilevit_coreml.reference.ops.attributes import Ints, along, choose


def upsample_bilinear(
    x: Tensor,
    scale_factor_height: float = 1.0,
    scale_factor_width: float = 1.0,
    align_corners: bool = True,
    half_pixel_centers: bool | None = None,
) -> Tensor:
    """By scale factors; without align_corners with half-pixel centres, unless half_pixel_centers is False."""
    size = _scaled(x, scale_factor_height, scale_factor_width)
    mode = "STRICT_ALIGN_CORNERS" if align_corners else "DEFAULT" if half_pixel_centers is False else "UNALIGN_CORNERS"
    return _bilinear(x, size, mode)


def upsample_nearest_neighbor(x: Tensor, scale_factor_height: float = 1.0, scale_factor_width: float = 1.0) -> Tensor:
    """By scale factors; source index floor(i * source size / target size), torch's `nearest`."""
    for axis, size in zip((-2, -1), _scaled(x, scale_factor_height, scale_factor_width), strict=True):
        x = x.index_select(axis, torch.arange(size) * x.shape[axis] // size)
    return x


def resize_bilinear(
    x: Tensor, target_size_height: int = 1, target_size_width: int = 1, sampling_mode: str = "DEFAULT"
) -> Tensor:
    return _bilinear(x, (target_size_height, target_size_width), sampling_mode)


def resize_nearest_neighbor(x: Tensor, target_size_height: int, target_size_width: int) -> Tensor:
    """Source pixel that contains the centre of the target pixel: TensorFlow's half_pixel_centers, in coremltools."""
    return resize(x, (target_size_height, target_size_width), 2, "NEAREST_NEIGHBOR")


def resize(
    x: Tensor, shape: Ints, resized_dims: int, interpolation_mode: str = "LINEAR", sampling_mode: str = "DEFAULT"
) -> Tensor:
    """The last resized_dims dimensions resized to `shape`; 0 keeps a dimension (iOS17)."""
    modes: Mapping[str, tuple[Callable[..., Tensor], Callable[..., Tensor]]] = {
        "LINEAR": (_grid, _linear),
        "NEAREST_NEIGHBOR": (_nearest, torch.index_select),
    }
    positions, sample = choose("interpolation_mode", interpolation_mode, modes)
    sizes = [size or old for size, old in zip(shape[-resized_dims:], x.shape[-resized_dims:], strict=True)]
    for axis, size in enumerate(sizes, start=x.dim() - resized_dims):
        x = sample(x, axis, positions(x.shape[axis], size, sampling_mode))
    return x


def crop(x: Tensor, crop_height: Ints, crop_width: Ints) -> Tensor:
    """crop_height, crop_width: (before, after), pixels to remove."""
    (top, bottom), (left, right) = crop_height, crop_width
    return x[..., top : x.shape[-2] - bottom, left : x.shape[-1] - right]


def crop_resize(
    x: Tensor,
    roi: Tensor | None = None,
    target_height: int = 1,
    target_width: int = 1,
    normalized_coordinates: bool = False,
    spatial_scale: float = 1.0,
    box_coordinate_mode: str = "CORNERS_HEIGHT_FIRST",
    sampling_mode: str = "DEFAULT",
    boxes: Tensor | None = None,
    box_indices: Tensor | None = None,
    pad_value: float | None = None,
) -> Tensor:
    """Crops of x, each resized: iOS15 `roi` (N, 1, 4 or 5, 1, 1), iOS17 `boxes` (N, 4) and `box_indices`.

    iOS15 has no pad_value, and boxes within the image. Returns (N, B or 1, C, h, w) for iOS15, (N, C, h, w) for iOS17.
    """
    indices: list[int] | None
    if boxes is not None:
        indices = list(range(boxes.shape[0])) if box_indices is None else box_indices.tolist()
        corners = boxes
    elif roi is not None:
        flat = roi.reshape(roi.shape[0], -1)
        indices = flat[:, 0].long().tolist() if flat.shape[1] == 5 else None
        corners = flat[:, -4:]
    else:
        raise UnsupportedError("crop_resize: expected roi or boxes, got neither")
    height, width = (x.shape[-2] - 1, x.shape[-1] - 1) if normalized_coordinates else (1, 1)
    crops = []
    for number, box in enumerate((corners * spatial_scale).tolist()):
        image = x if indices is None else x[indices[number]][None]
        top, left, bottom, right = _corners(box, box_coordinate_mode)
        rows = _box_grid(top * height, bottom * height, target_height, sampling_mode)
        columns = _box_grid(left * width, right * width, target_width, sampling_mode)
        if pad_value is None and not (_within(x.shape[-2], rows) and _within(x.shape[-1], columns)):
            raise UnsupportedError(
                f"roi: expected boxes within the image, got {box} without pad_value; "
                "the specification does not define the result"
            )
        crops.append(_linear(_linear(image, 2, rows, pad_value), 3, columns, pad_value))
    stacked = torch.stack(crops)
    return stacked.squeeze(1) if boxes is not None else stacked


def resample(
    x: Tensor,
    coordinates: Tensor,
    sampling_mode: str,
    padding_mode: str,
    padding_value: float,
    coordinates_mode: str,
    align_corners: bool,
) -> Tensor:
    """x: (N, C, H, W) at coordinates (N, h, w, 2), each (x, y)."""
    size = torch.tensor([x.shape[3], x.shape[2]], dtype=torch.float32)
    points = coordinates.float()
    modes = {
        "unnormalized": points,
        "normalized_minus_one_to_one": (
            (points + 1) / 2 * (size - 1) if align_corners else ((points + 1) * size - 1) / 2
        ),
        "normalized_zero_to_one": points * (size - 1) if align_corners else points * size - 0.5,
    }
    positions = choose("coordinates_mode", coordinates_mode, modes)
    symmetric = padding_mode == "symmetric"  # reflected at the edges of the outer pixels, not at their centres
    grid = (2 * positions + 1) / size - 1 if symmetric else 2 * positions / (size - 1).clamp(min=1) - 1
    mode = choose("sampling_mode", sampling_mode, {"bilinear": "bilinear", "nearest": "nearest"})
    paddings = {"constant": "zeros", "border": "border", "reflection": "reflection", "symmetric": "reflection"}
    padding = choose("padding_mode", padding_mode, paddings)
    outside = padding_value if padding_mode == "constant" else 0
    return F.grid_sample(x - outside, grid, mode, padding, align_corners=not symmetric) + outside


def affine(
    x: Tensor,
    transform_matrix: Tensor,
    output_height: int,
    output_width: int,
    sampling_mode: str,
    padding_mode: str,
    padding_value: float,
    coordinates_mode: str,
    align_corners: bool,
) -> Tensor:
    """`resample` at the output coordinates mapped by transform_matrix (N, 6)."""
    if coordinates_mode != "normalized_minus_one_to_one":
        raise UnsupportedError(f"coordinates_mode: expected normalized_minus_one_to_one, got {coordinates_mode!r}")
    matrices = transform_matrix.reshape(-1, 2, 3).expand(x.shape[0], -1, -1)
    grid = F.affine_grid(matrices, [x.shape[0], x.shape[1], output_height, output_width], align_corners)
    return resample(x, grid, sampling_mode, padding_mode, padding_value, coordinates_mode, align_corners)


def _scaled(x: Tensor, height: float, width: float) -> tuple[int, int]:
    return math.floor(x.shape[-2] * height + 1e-4), math.floor(x.shape[-1] * width + 1e-4)


def _bilinear(x: Tensor, size: tuple[int, int], mode: str) -> Tensor:
    if x.dim() == 4 and mode in ("STRICT_ALIGN_CORNERS", "UNALIGN_CORNERS"):  # torch has these two itself
        return F.interpolate(x, size, mode="bilinear", align_corners=mode == "STRICT_ALIGN_CORNERS")
    return resize(x, size, 2, sampling_mode=mode)


def _grid(size: float, target: int, mode: str) -> Tensor:
    """Source coordinates of the target pixels, by the specification of resize_bilinear."""
    index = torch.arange(target, dtype=torch.float64)
    corners = index * ((size - 1) / max(target - 1, 1))
    offset = max(1, size - 1) / target
    grids = {
        "STRICT_ALIGN_CORNERS": corners,
        "ALIGN_CORNERS": corners if target > 1 else torch.full_like(index, (size - 1) / 2),
        "DEFAULT": index * ((size - size / target) / max(target - 1, 1)),
        "OFFSET_CORNERS": 0.5 * offset + index * offset,
        "UNALIGN_CORNERS": (index + 0.5) * (size / target) - 0.5,
    }
    return choose("sampling_mode", mode, grids).clamp(0, size - 1)


def _nearest(size: int, target: int, mode: str) -> Tensor:
    if mode in ("DEFAULT", "UNALIGN_CORNERS"):  # pixel centres in both, as coremltools' tests on Core ML expect
        return (2 * torch.arange(target) + 1) * size // (2 * target)
    return (_grid(size, target, mode) + 0.5).floor().long().clamp(max=size - 1)


def _box_grid(start: float, end: float, target: int, mode: str) -> Tensor:
    """Source coordinates of a crop from `start` to `end`, descending if end < start."""
    return start + math.copysign(1.0, end - start) * _grid(abs(end - start) + 1, target, mode)


def _within(size: int, positions: Tensor) -> bool:
    slack = 1e-3  # of a pixel, for boxes in fp16
    return bool(((positions >= -slack) & (positions <= size - 1 + slack)).all())


def _linear(x: Tensor, axis: int, grid: Tensor, outside: float | None = None) -> Tensor:
    """Linear interpolation at fractional coordinates along an axis; beyond the ends the edge value, or `outside`."""
    size = x.shape[axis]
    inside = grid.clamp(0, size - 1)
    low = inside.floor().long()
    high = (low + 1).clamp(max=size - 1)
    weight = along((inside - low).to(torch.float32), axis, x.dim())
    y = torch.lerp(x.index_select(axis, low), x.index_select(axis, high), weight)
    return y if outside is None else torch.where(along(grid != inside, axis, x.dim()), torch.tensor(outside), y)


def _corners(box: list[float], mode: str) -> tuple[float, float, float, float]:
    """Box as (top, left, bottom, right)."""
    a, b, c, d = box
    corners = {
        "CORNERS_HEIGHT_FIRST": (a, b, c, d),
        "CORNERS_WIDTH_FIRST": (b, a, d, c),
        "CENTER_SIZE_HEIGHT_FIRST": (a - c / 2, b - d / 2, a + c / 2, b + d / 2),
        "CENTER_SIZE_WIDTH_FIRST": (b - d / 2, a - c / 2, b + d / 2, a + c / 2),
    }
    return choose("box_coordinate_mode", mode, corners)
