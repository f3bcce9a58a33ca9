"""The parameters of a MobileViT, and the table of published variants."""

import dataclasses
import enum
import math
from collections.abc import Mapping
from typing import Any

from mobilevit_coreml.errors import ConfigError, check_choice
from mobilevit_coreml.labels import imagenet_labels, labels_from_mapping, voc_labels


class Task(enum.StrEnum):
    """The head on top of the backbone."""

    CLASSIFICATION = "classification"
    SEGMENTATION = "segmentation"
    FEATURES = "features"


class AttentionImplementation(enum.StrEnum):
    """Implementations of the same attention, chosen at conversion."""

    SPLIT_EINSUM = "split_einsum"  # one head at a time, documented by Apple for the Neural Engine
    PACKED = "packed"  # all heads in one matmul: fewest operations


class UnfoldImplementation(enum.StrEnum):
    """Implementations of the same unfold and fold, chosen at conversion."""

    SPACE_TO_BATCH = "space_to_batch"
    PIXEL_SHUFFLE = "pixel_shuffle"


CLASSIFICATION, SEGMENTATION, FEATURES = TASKS = tuple(Task)
SINGLE_LABEL, MULTI_LABEL, REGRESSION = PROBLEM_TYPES = (
    "single_label_classification",
    "multi_label_classification",
    "regression",
)
POOLS = ("avg", "max")
ACTIVATIONS = ("silu", "swish", "relu", "relu6", "gelu", "leaky_relu", "hardswish")
NECK_SIZES = 7  # stem, five stages, final expansion
TRANSFORMER_STAGES = 3  # stages 3, 4 and 5
MIN_IMAGE_SIDE = 8  # pixels; the network halves an image five times
MAX_IMAGE_SIDE = 4096  # pixels; past any published use
MAX_WIDTH = 16384  # channels; 25 times the widest published layer


@dataclasses.dataclass(frozen=True)
class MobileViTConfig:
    """Every parameter of a MobileViT, under the names of transformers' reference configuration.

    `hidden_sizes` are the widths of the transformers in stages 3 to 5, `neck_hidden_sizes` those of
    the stem, the five stages and the final expansion (Mehta & Rastegari 2022, table 4).
    `image_size` and `patch_size` are pixels, one int or (height, width). Probabilities are in [0, 1].
    `id2label` is the label map beside them: class i is called `id2label[i]`. `problem_type` is what a
    classifier's outputs mean: one class of all (softmax), labels of which any number may apply (sigmoid), or plain
    values. `global_pool` is the pooling before its head, avg or max, as timm calls it.

    Raises ConfigError for values no network can be built from.
    """

    num_channels: int = 3
    image_size: int | tuple[int, int] = 256
    patch_size: int | tuple[int, int] = 2
    hidden_sizes: tuple[int, ...] = (144, 192, 240)
    neck_hidden_sizes: tuple[int, ...] = (16, 32, 64, 96, 128, 160, 640)
    num_attention_heads: int = 4
    mlp_ratio: float = 2.0
    expand_ratio: float = 4.0
    hidden_act: str = "silu"
    conv_kernel_size: int = 3
    output_stride: int = 32
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.0
    classifier_dropout_prob: float = 0.1
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-5
    qkv_bias: bool = True
    aspp_out_channels: int = 256
    atrous_rates: tuple[int, ...] = (6, 12, 18)
    aspp_dropout_prob: float = 0.1
    semantic_loss_ignore_index: int = 255
    id2label: tuple[str, ...] = dataclasses.field(default_factory=imagenet_labels, repr=False)
    problem_type: str = SINGLE_LABEL
    global_pool: str = "avg"

    def __post_init__(self) -> None:
        self._normalize_sequences()
        self._check_sizes()
        self._check_widths()
        self._check_numbers()

    @property
    def num_labels(self) -> int:
        """Number of classes."""
        return len(self.id2label)

    @property
    def image_hw(self) -> tuple[int, int]:
        """(height, width) of the input, pixels."""
        return _pair(self.image_size)

    @property
    def patch_hw(self) -> tuple[int, int]:
        """(height, width) of an attention patch, cells of the feature map."""
        return _pair(self.patch_size)

    def stage_strides(self) -> tuple[int, int, int, int, int]:
        """Stride of each stage's first block; dilation takes the place of the last ones at stride 8 and 16."""
        return (1, 2, 2, 1 if self.output_stride == 8 else 2, 1 if self.output_stride in (8, 16) else 2)

    def stage_dilations(self) -> tuple[int, int, int, int, int]:
        """Dilation of each stage's depthwise convolution, for the strides it took the place of so far.

        The first stage without its stride is not dilated itself; the reference halves it there.
        """
        return (1, 1, 1, 1, 2 if self.output_stride == 8 else 1)

    def stage_sizes(self) -> tuple[tuple[int, int], ...]:
        """(height, width) of the feature map of each of the five stages, cells."""
        height, width = (_halve(side) for side in self.image_hw)  # the stem
        sizes = []
        for stride in self.stage_strides():
            if stride == 2:
                height, width = _halve(height), _halve(width)
            sizes.append((height, width))
        return tuple(sizes)

    def _normalize_sequences(self) -> None:
        # JSON has lists and dicts where a frozen, hashable config needs tuples.
        for name in ("image_size", "patch_size", "hidden_sizes", "neck_hidden_sizes", "atrous_rates"):
            value = getattr(self, name)
            if isinstance(value, list):
                object.__setattr__(self, name, tuple(value))
        names: Any = self.id2label
        if isinstance(names, Mapping | list):
            by_index = names if isinstance(names, Mapping) else dict(enumerate(names))
            object.__setattr__(self, "id2label", labels_from_mapping(by_index, "id2label"))
        elif not isinstance(names, tuple):
            raise ConfigError(f"id2label: expected the name of each class by its index, got {names!r:.60}")

    def _check_sizes(self) -> None:
        for name, low, high in (
            ("image_size", MIN_IMAGE_SIDE, MAX_IMAGE_SIDE),
            ("patch_size", 1, MAX_IMAGE_SIDE),
        ):
            value = getattr(self, name)
            sides = value if isinstance(value, tuple) else (value, value)
            if len(sides) != 2 or not all(_is_int(side) and low <= side <= high for side in sides):
                raise ConfigError(
                    f"{name}: expected an int or (height, width), each {low} to {high}, got {value!r}; "
                    f"the published models use {'256 or 512' if name == 'image_size' else '2'}"
                )
        if self.output_stride not in (8, 16, 32):
            raise ConfigError(
                f"output_stride: expected 8, 16 or 32, got {self.output_stride!r}; "
                "use 32 for classification, 16 or 8 for segmentation"
            )

    def _check_widths(self) -> None:
        for name, count in (
            ("hidden_sizes", TRANSFORMER_STAGES),
            ("neck_hidden_sizes", NECK_SIZES),
            ("atrous_rates", 3),
        ):
            value = getattr(self, name)
            widths_ok = isinstance(value, tuple) and all(_is_int(v) and 1 <= v <= MAX_WIDTH for v in value)
            if not widths_ok or len(value) != count:
                raise ConfigError(f"{name}: expected {count} ints, each 1 to {MAX_WIDTH}, got {value!r}")
        for name in ("num_channels", "num_attention_heads", "aspp_out_channels", "conv_kernel_size"):
            value = getattr(self, name)
            if not (_is_int(value) and 1 <= value <= MAX_WIDTH):
                raise ConfigError(f"{name}: expected an int, 1 to {MAX_WIDTH}, got {value!r}")
        if self.conv_kernel_size % 2 == 0:
            raise ConfigError(
                f"conv_kernel_size: expected an odd int, got {self.conv_kernel_size}; "
                "an even kernel changes the map's size and the fusion could not join its two inputs"
            )
        for width in self.hidden_sizes:
            if width % self.num_attention_heads:
                raise ConfigError(
                    f"hidden_sizes: expected multiples of num_attention_heads "
                    f"({self.num_attention_heads}), got {width}; change one of the two"
                )

    def _check_numbers(self) -> None:
        for name in (
            "hidden_dropout_prob",
            "attention_probs_dropout_prob",
            "classifier_dropout_prob",
            "aspp_dropout_prob",
        ):
            value = getattr(self, name)
            if not (_is_number(value) and 0 <= value <= 1):
                raise ConfigError(f"{name}: expected a probability, 0 to 1, got {value!r}")
        for name, high in (
            ("mlp_ratio", 64),
            ("expand_ratio", 64),
            ("initializer_range", 100),
            ("layer_norm_eps", 1),
        ):
            value = getattr(self, name)
            if not (_is_number(value) and 0 < value <= high):
                raise ConfigError(f"{name}: expected a number above 0, at most {high}, got {value!r}")
        if int(min(self.hidden_sizes) * self.mlp_ratio) < 1:
            raise ConfigError(f"mlp_ratio: {self.mlp_ratio} leaves no hidden unit at width {min(self.hidden_sizes)}")
        if self.hidden_act not in ACTIVATIONS:
            raise ConfigError(f"hidden_act: expected one of {', '.join(ACTIVATIONS)}, got {self.hidden_act!r}")
        check_choice("problem_type", self.problem_type, PROBLEM_TYPES, ConfigError)
        check_choice("global_pool", self.global_pool, POOLS, ConfigError)
        if not isinstance(self.qkv_bias, bool):
            raise ConfigError(f"qkv_bias: expected true or false, got {self.qkv_bias!r}")
        if not _is_int(self.semantic_loss_ignore_index):
            raise ConfigError(f"semantic_loss_ignore_index: expected an int, got {self.semantic_loss_ignore_index!r}")
        if not self.id2label or not all(isinstance(name, str) and name for name in self.id2label):
            raise ConfigError(f"id2label: expected at least one class, each with a name, got {self.id2label!r:.80}")


def _pair(value: int | tuple[int, int]) -> tuple[int, int]:
    return value if isinstance(value, tuple) else (value, value)


def _halve(side: int) -> int:
    return math.ceil(side / 2)  # a 3x3 convolution with stride 2 and padding 1


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    return _is_int(value) or (isinstance(value, float) and math.isfinite(value))


# Apple's ImageNet-1k models: 1,272,024, 2,317,848 and 5,578,632 parameters.
VARIANTS: Mapping[str, MobileViTConfig] = {
    "xxs": MobileViTConfig(
        hidden_sizes=(64, 80, 96),
        neck_hidden_sizes=(16, 16, 24, 48, 64, 80, 320),
        expand_ratio=2.0,
        hidden_dropout_prob=0.05,
    ),
    "xs": MobileViTConfig(
        hidden_sizes=(96, 120, 144),
        neck_hidden_sizes=(16, 32, 48, 64, 80, 96, 384),
    ),
    "s": MobileViTConfig(
        hidden_sizes=(144, 192, 240),
        neck_hidden_sizes=(16, 32, 64, 96, 128, 160, 640),
    ),
}


def published_config(variant: str, task: str) -> MobileViTConfig:
    """The configuration Apple published a variant in for a task: ImageNet-1k, or PASCAL VOC for segmentation."""
    if task == SEGMENTATION:
        return dataclasses.replace(VARIANTS[variant], image_size=512, output_stride=16, id2label=voc_labels())
    return VARIANTS[variant]


CUSTOM = "custom"  # name of a network with other widths

_SHAPE_FIELDS = ("num_channels", "hidden_sizes", "neck_hidden_sizes", "mlp_ratio", "expand_ratio", "conv_kernel_size")


def variant_of(config: MobileViTConfig) -> str:
    """Name of the published variant with these widths, or "custom"."""
    for name, published in VARIANTS.items():
        if all(getattr(config, field) == getattr(published, field) for field in _SHAPE_FIELDS):
            return name
    return CUSTOM
