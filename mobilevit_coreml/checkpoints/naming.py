"""From the names a checkpoint uses to the model's own state dict, strictly."""

import dataclasses
import re
from collections.abc import Iterable, Mapping
from functools import cache

import torch
from torch import Tensor

from mobilevit_coreml.config import (
    CLASSIFICATION,
    FEATURES,
    SEGMENTATION,
    VARIANTS,
    MobileViTConfig,
    Task,
    published_config,
)
from mobilevit_coreml.errors import CheckpointError
from mobilevit_coreml.labels import placeholder_labels
from mobilevit_coreml.model import model_for

MAX_LISTED_KEYS = 40  # of each kind in one message
STEP_COUNTER = ".num_batches_tracked"  # batch norm's, of no use to inference


@dataclasses.dataclass(frozen=True)
class Naming:
    """How one code base names the parameters of a MobileViT.

    `renames` turn a name of this package into the source's: regular expressions, applied in order.
    `{a,b}` in the result stands for several tensors that are one here, stacked along dimension 0.
    A checkpoint is recognized by a key ending in `marker`; `optional_prefix` is on the keys of some
    of its checkpoints only, and `aliases` lead from other names that are in use to these. `heads` are
    the prefixes of what follows the backbone, `unused` those of what inference has no use for.
    `channel_order` is what the code base feeds its networks.
    """

    name: str
    marker: str
    channel_order: str
    renames: tuple[tuple[str, str], ...]
    heads: tuple[str, ...]
    optional_prefix: str = ""
    aliases: tuple[tuple[str, str], ...] = ()
    unused: tuple[str, ...] = ()

    def source_keys(self, own: str) -> tuple[str, ...]:
        """What the source calls the parameter that is called `own` here."""
        for pattern, replacement in self.renames:
            own = re.sub(pattern, replacement, own)
        head, brace, rest = own.partition("{")
        if not brace:
            return (own,)
        parts, _, tail = rest.partition("}")
        return tuple(head + part + tail for part in parts.split(","))


def recognize(
    tensors: Mapping[str, Tensor], namings: Iterable[Naming], source: str
) -> tuple[Naming, dict[str, Tensor]]:
    """The naming the keys follow, and the tensors without the prefixes of wrappers (`module.`, `model.`, …).

    Raises CheckpointError when they follow none.
    """
    namings = tuple(namings)
    for naming in namings:
        marked = re.compile(rf"((?:.*?\.)??)(?:{re.escape(naming.optional_prefix)})?{re.escape(naming.marker)}")
        wrappers = sorted({match[1] for key in tensors if (match := marked.fullmatch(key))})
        if len(wrappers) > 1:
            raise CheckpointError(
                f"{source}: expected one network, got {len(wrappers)}, under {_listed(map(repr, wrappers), 4)}; "
                "save the state dict of the one to convert"
            )
        if wrappers:
            names = {key: _unwrapped(key, wrappers[0], naming) for key in tensors}
            return naming, {
                names[key]: tensor for key, tensor in tensors.items() if not names[key].startswith(naming.unused)
            }
    markers = ", ".join(f"{naming.marker} ({naming.name})" for naming in namings)
    raise CheckpointError(
        f"{source}: expected the keys of a MobileViT, such as {markers}, got {_listed(tensors, 4) or 'no tensors'}; "
        "check that these are the weights of a MobileViT v1"
    )


def _unwrapped(key: str, wrapper: str, naming: Naming) -> str:
    key = key.removeprefix(wrapper).removeprefix(naming.optional_prefix)
    for pattern, replacement in naming.aliases:
        key = re.sub(pattern, replacement, key)
    return key


def infer_task(tensors: Mapping[str, Tensor], naming: Naming) -> Task:
    """The task whose head a checkpoint has, or most of it; features where it has none."""
    found = {
        task: sum(
            key in tensors
            for own in parameter_shapes(published_config("xxs", task), task)
            if not own.startswith("backbone.")
            for key in naming.source_keys(own)
        )
        for task in (CLASSIFICATION, SEGMENTATION)
    }
    task = max(found, key=lambda task: found[task])
    return task if found[task] else FEATURES


def has_expansion(tensors: Mapping[str, Tensor], naming: Naming) -> bool:
    """Whether a checkpoint has the backbone's last convolution, which a segmenter does without."""
    return naming.source_keys("backbone.expand.conv.weight")[0] in tensors


def infer_config(tensors: Mapping[str, Tensor], naming: Naming, task: str = CLASSIFICATION) -> MobileViTConfig:
    """The configuration the shapes tell; what they cannot tell is as published for the variant they fit best.

    Raises ConfigError where no network has such shapes.
    """

    def size(own: str, dim: int, default: int) -> int:
        tensor = tensors.get(naming.source_keys(own)[0])
        return tensor.shape[dim] if tensor is not None and tensor.dim() > dim else default

    def fit(config: MobileViTConfig) -> int:
        shapes = ((naming.source_keys(own), shape) for own, shape in parameter_shapes(config, task).items())
        return sum(len(keys) == 1 and keys[0] in tensors and tensors[keys[0]].shape == s for keys, s in shapes)

    nearest = max((published_config(variant, task) for variant in VARIANTS), key=fit)
    necks = nearest.neck_hidden_sizes
    stages = [size(f"backbone.stage{i}.0.reduce.conv.weight", 0, necks[i]) for i in range(1, 6)]
    hidden = [
        size(f"backbone.stage{i}.1.layer_norm.weight", 0, width)
        for i, width in enumerate(nearest.hidden_sizes, start=3)
    ]
    stem = size("backbone.stem.conv.weight", 0, necks[0])
    widened = size("backbone.stage1.0.expand.conv.weight", 0, round(stem * nearest.expand_ratio))
    mlp = size("backbone.stage3.1.layers.0.mlp_in.bias", 0, int(hidden[0] * nearest.mlp_ratio))
    classifier = "head.classifier.weight" if task == SEGMENTATION else "classifier.weight"
    classes = size(classifier, 0, nearest.num_labels)
    qkv_biases = naming.source_keys("backbone.stage3.1.layers.0.attention.qkv.bias")
    return dataclasses.replace(
        nearest,
        num_channels=size("backbone.stem.conv.weight", 1, nearest.num_channels),
        neck_hidden_sizes=(stem, *stages, size("backbone.expand.conv.weight", 0, necks[6])),
        hidden_sizes=tuple(hidden),
        expand_ratio=widened / max(stem, 1),
        mlp_ratio=mlp / max(hidden[0], 1),
        conv_kernel_size=size("backbone.stage3.1.local.conv.weight", 3, nearest.conv_kernel_size),
        qkv_bias=any(key in tensors for key in qkv_biases),
        aspp_out_channels=size("head.project.conv.weight", 0, nearest.aspp_out_channels),
        id2label=nearest.id2label if classes == nearest.num_labels else placeholder_labels(classes),
    )


def remap_state_dict(
    tensors: Mapping[str, Tensor], naming: Naming, config: MobileViTConfig, source: str, task: str = CLASSIFICATION
) -> dict[str, Tensor]:
    """The state dict of the model for a task, float32, from a checkpoint's tensors; features have no use for heads.

    Raises CheckpointError that lists all missing, unexpected and mis-shaped keys together, or for
    weights that are not finite.
    """
    state: dict[str, Tensor] = {}
    missing: list[str] = []
    misshapen: list[str] = []
    passed_over = naming.heads if task == FEATURES else ()
    unexpected = {key for key in tensors if not key.endswith(STEP_COUNTER) and not key.startswith(passed_over)}
    for own, shape in parameter_shapes(config, task, has_expansion(tensors, naming)).items():
        keys = naming.source_keys(own)
        unexpected.difference_update(keys)
        part = torch.Size((shape[0] // len(keys), *shape[1:]))
        for key in keys:
            if key not in tensors:
                missing.append(key)
            elif not _holds(tensors[key], part):
                misshapen.append(f"{key} (expected {_shape_text(part)}, got {_tensor_text(tensors[key])})")
        if not missing and not misshapen:
            state[own] = torch.cat([tensors[key].to(torch.float32).reshape(part) for key in keys])
    problems = [
        f"{len(keys)} {what}: {_listed(keys, MAX_LISTED_KEYS)}"
        for what, keys in (("missing", missing), ("unexpected", sorted(unexpected)), ("mis-shaped", misshapen))
        if keys
    ]
    if problems:
        raise CheckpointError(
            f"{source}: expected exactly the {naming.name} keys of this MobileViT, got {'; '.join(problems)}; "
            "check the variant, the task and the number of classes"
        )
    _check_finite(state, naming, source)
    return state


@cache  # making a model takes a tenth of a second even without its weights, and recognition asks for four
def parameter_shapes(
    config: MobileViTConfig, task: str = CLASSIFICATION, expand: bool = True
) -> Mapping[str, torch.Size]:
    """Shape of every parameter and statistic of the model for a task, by its own name."""
    with torch.device("meta"):
        model = model_for(task, config, expand=expand)
    return {key: tensor.shape for key, tensor in model.state_dict().items() if not key.endswith(STEP_COUNTER)}


def _holds(tensor: Tensor, shape: torch.Size) -> bool:
    # A linear layer here is a 1x1 convolution: (out, in) in the checkpoint is (out, in, 1, 1) here.
    squeezed = shape[:-2] if shape[2:] == (1, 1) else shape
    is_plain = tensor.is_floating_point() and tensor.layout == torch.strided and not tensor.is_meta
    return is_plain and tensor.shape in (shape, squeezed)


def _check_finite(state: Mapping[str, Tensor], naming: Naming, source: str) -> None:
    broken = [own for own, tensor in state.items() if not tensor.isfinite().all()]
    if broken:
        keys = [key for own in broken for key in naming.source_keys(own)]
        raise CheckpointError(
            f"{source}: expected finite weights, got NaN or infinity in {_listed(keys, MAX_LISTED_KEYS)}; "
            "take an earlier checkpoint of that training"
        )


def _tensor_text(tensor: Tensor) -> str:
    kinds = [str(tensor.dtype)] if not tensor.is_floating_point() else []
    kinds += [str(tensor.layout)] if tensor.layout != torch.strided else []
    kinds += ["no values"] if tensor.is_meta else []
    return " of ".join([_shape_text(tensor.shape), *(kind.removeprefix("torch.") for kind in kinds)])


def _shape_text(shape: torch.Size) -> str:
    return "x".join(map(str, shape)) or "a scalar"


def _listed(keys: Iterable[str], limit: int) -> str:
    keys = list(keys)
    more = f" and {len(keys) - limit} more" if len(keys) > limit else ""
    return ", ".join(keys[:limit]) + more
