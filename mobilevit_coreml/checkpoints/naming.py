"""Strict mapping of checkpoint keys to the parameter names of the model."""

import dataclasses
import re
from collections.abc import Collection, Iterable, Mapping
from functools import cache

import torch
from torch import Tensor

from mobilevit_coreml.config import VARIANTS, MobileViTConfig, Task, published_config
from mobilevit_coreml.errors import CheckpointError
from mobilevit_coreml.labels import placeholder_labels
from mobilevit_coreml.model import model_for

MAX_LISTED_KEYS = 3  # of each kind in a message
STEP_COUNTER = ".num_batches_tracked"  # of batch norm, not used in inference
AVERAGE_COUNTER = "n_averaged"  # of torch's AveragedModel, not used in inference

# tensors of a training: of its loss, its class weights, its metrics
TRAINING = re.compile(
    r"(.*\.)?(criterion|loss|loss_fn|loss_func|loss_function|ce_loss|(train|val|valid|test)_(acc|accuracy|f1|metrics?))"
    r"\..*|(.*\.)?(class_weights?|pos_weight|loss_weights?)"
)
# Other networks and files by a key: what they are, and what to do
FOREIGN = (
    (
        re.compile(r".*\.lora_(A|B|embedding_A|embedding_B|magnitude_vector)\b.*|base_model\.model\..*"),
        "a PEFT adapter",
        "save the whole model: model.merge_and_unload().save_pretrained(DIRECTORY)",
    ),
    (
        re.compile(r".*(pre_norm_attn|attn\.qkv_proj|attention\.qkv_proj)\..*"),
        "a MobileViTv2",
        "give the weights of a MobileViT of the first version",
    ),
    (
        re.compile(r"(.*\.)?layers\.\d\.\d\.local_rep\.\d\.conv\.weight"),
        "a MobileViT of mmpretrain",
        "give the weights in the names of transformers, timm or ml-cvnets",
    ),
    (
        re.compile(r".*\._packed_params.*|.*\.(scale|zero_point|qweight)"),
        "a quantized model",
        "give the weights from before quantization",
    ),
)


@dataclasses.dataclass(frozen=True)
class Naming:
    """Parameter names of a MobileViT in one code base.

    `renames` are regular expressions and replacements, applied in order, from the names of this
    package to those of the code base; `{a,b}` in the result stands for several tensors that are
    concatenated along dimension 0 here.
    """

    name: str
    marker: str  # end of a key that identifies the code base
    channel_order: str  # of the input, BGR or RGB
    renames: tuple[tuple[str, str], ...]
    heads: tuple[str, ...]  # prefixes of keys after the backbone
    last_layers: tuple[str, ...] = ()  # modules that may be Sequential(…, Linear) instead of a linear layer
    optional_prefix: str = ""  # of keys in some checkpoints
    aliases: tuple[tuple[str, str], ...] = ()  # renames from alternative keys
    unused: tuple[str, ...] = ()  # prefixes of keys that inference does not use

    def source_keys(self, name: str) -> tuple[str, ...]:
        """Keys in the code base of the parameter `name` of this package."""
        for pattern, replacement in self.renames:
            name = re.sub(pattern, replacement, name)
        head, brace, rest = name.partition("{")
        if not brace:
            return (name,)
        parts, _, tail = rest.partition("}")
        return tuple(head + part + tail for part in parts.split(","))


def recognize(
    tensors: Mapping[str, Tensor], namings: Iterable[Naming], source: str
) -> tuple[Naming, dict[str, Tensor]]:
    """The naming of the keys, and the tensors under its names: without wrappers' prefixes and what is not used.

    Prefixes are any that all keys of a network have in common (`module.`, `backbone.net.`, …).

    Raises CheckpointError if no naming matches, for several networks in one file, and for other networks.
    """
    namings = tuple(namings)
    for pattern, what, remedy in FOREIGN:
        key = next((key for key in tensors if pattern.fullmatch(key) and not TRAINING.fullmatch(key)), None)
        if key is not None:
            raise CheckpointError(f"{source}: expected the weights of a MobileViT, got {what} ({key:.80}); {remedy}")
    for naming in namings:
        marked = re.compile(rf"((?:.*?\.)??)(?:{re.escape(naming.optional_prefix)})?{re.escape(naming.marker)}")
        wrappers = sorted({match[1] for key in tensors if (match := marked.fullmatch(key))})
        if len(wrappers) > 1:
            raise CheckpointError(
                f"{source}: expected one network, got {len(wrappers)}, under {_listed(map(repr, wrappers), 4)}; "
                "save the state dict of the one to convert"
            )
        if wrappers:
            renamed = {
                _canonical_key(key, wrappers[0], naming): tensor
                for key, tensor in tensors.items()
                if not TRAINING.fullmatch(key) and key.rpartition(".")[2] != AVERAGE_COUNTER
            }
            used = {key: tensor for key, tensor in renamed.items() if not key.startswith(naming.unused)}
            return naming, used
    markers = ", ".join(f"{naming.marker} ({naming.name})" for naming in namings)
    raise CheckpointError(
        f"{source}: expected the keys of a MobileViT, such as {markers}, got {_listed(tensors, 4) or 'no tensors'}; "
        "check that these are the weights of a MobileViT v1"
    )


def _canonical_key(key: str, wrapper: str, naming: Naming) -> str:
    key = key.removeprefix(wrapper).removeprefix(naming.optional_prefix)
    for pattern, replacement in naming.aliases:
        key = re.sub(pattern, replacement, key)
    return key


def with_linear_heads(tensors: Mapping[str, Tensor], naming: Naming, source: str) -> dict[str, Tensor]:
    """The tensors with the last layer of a head under its own name, where Sequential(Dropout, Linear) numbers it.

    Raises CheckpointError for a head of several layers.
    """
    found = dict(tensors)
    for name in ("classifier.weight", "head.classifier.weight"):
        layer = naming.source_keys(name)[0].removesuffix(".weight")
        root = next((root for root in naming.last_layers if (layer + ".").startswith(root + ".")), layer)
        inside = [key for key in found if key.startswith(root + ".")]
        weights = [key for key in inside if found[key].dim() > 1]
        if len(weights) > 1:
            raise CheckpointError(
                f"{source}: expected a head of one linear layer, got {len(weights)}: {_listed(weights, 4)}; train such "
                "a head, or convert --task features and compute the head in the app"
            )
        if weights and weights[0] != layer + ".weight":
            stem = weights[0].removesuffix(".weight")
            for key in (key for key in inside if key.startswith(stem + ".")):
                found[layer + key.removeprefix(stem)] = found.pop(key)
        if layer + ".weight" in found and not any(key.endswith(".bias") for key in inside):
            found[layer + ".bias"] = torch.zeros(len(found[layer + ".weight"]))  # Linear(…, bias=False)
    return found


def infer_task(tensors: Mapping[str, Tensor], naming: Naming) -> Task:
    """The task with the most keys of its head in a checkpoint; features if there are none."""
    counts = {
        task: sum(
            key in tensors
            for name in parameter_shapes(published_config("xxs", task), task)
            if not name.startswith("backbone.")
            for key in naming.source_keys(name)
        )
        for task in (Task.CLASSIFICATION, Task.SEGMENTATION)
    }
    task = max(counts, key=lambda task: counts[task])
    return task if counts[task] else Task.FEATURES


def head_keys(tensors: Mapping[str, Tensor], naming: Naming) -> list[str]:
    """The keys of a checkpoint's head."""
    return [key for key in tensors if key.startswith(naming.heads)]


def has_expansion(tensors: Mapping[str, Tensor], naming: Naming) -> bool:
    """True if a checkpoint has the backbone's final expansion, which segmenters do not need."""
    return naming.source_keys("backbone.expand.conv.weight")[0] in tensors


def infer_config(tensors: Mapping[str, Tensor], naming: Naming, task: str = Task.CLASSIFICATION) -> MobileViTConfig:
    """Configuration from the shapes of the tensors, with values of the best-fitting published variant for the rest.

    Raises ConfigError if the shapes are not those of a MobileViT.
    """

    def size(name: str, dim: int, default: int) -> int:
        tensor = tensors.get(naming.source_keys(name)[0])
        return tensor.shape[dim] if tensor is not None and tensor.dim() > dim else default

    def matches(config: MobileViTConfig) -> int:
        shapes = ((naming.source_keys(name), shape) for name, shape in parameter_shapes(config, task).items())
        return sum(len(keys) == 1 and keys[0] in tensors and tensors[keys[0]].shape == s for keys, s in shapes)

    nearest = max((published_config(variant, task) for variant in VARIANTS), key=matches)
    necks = nearest.neck_hidden_sizes
    stages = [size(f"backbone.stage{i}.0.reduce.conv.weight", 0, necks[i]) for i in range(1, 6)]
    hidden = [
        size(f"backbone.stage{i}.1.layer_norm.weight", 0, width)
        for i, width in enumerate(nearest.hidden_sizes, start=3)
    ]
    stem = size("backbone.stem.conv.weight", 0, necks[0])
    expanded = size("backbone.stage1.0.expand.conv.weight", 0, round(stem * nearest.expand_ratio))
    mlp = size("backbone.stage3.1.layers.0.mlp_in.bias", 0, int(hidden[0] * nearest.mlp_ratio))
    classifier = "head.classifier.weight" if task == Task.SEGMENTATION else "classifier.weight"
    classes = size(classifier, 0, nearest.num_labels)
    qkv_biases = naming.source_keys("backbone.stage3.1.layers.0.attention.qkv.bias")
    return dataclasses.replace(
        nearest,
        num_channels=size("backbone.stem.conv.weight", 1, nearest.num_channels),
        neck_hidden_sizes=(stem, *stages, size("backbone.expand.conv.weight", 0, necks[6])),
        hidden_sizes=tuple(hidden),
        expand_ratio=expanded / max(stem, 1),
        mlp_ratio=mlp / max(hidden[0], 1),
        conv_kernel_size=size("backbone.stage3.1.local.conv.weight", 3, nearest.conv_kernel_size),
        qkv_bias=any(key in tensors for key in qkv_biases),
        aspp_out_channels=size("head.project.conv.weight", 0, nearest.aspp_out_channels),
        id2label=nearest.id2label if classes == nearest.num_labels else placeholder_labels(classes),
    )


def remap_state_dict(
    tensors: Mapping[str, Tensor],
    naming: Naming,
    config: MobileViTConfig,
    source: str,
    task: str = Task.CLASSIFICATION,
) -> dict[str, Tensor]:
    """Float32 state dict of the model for a task, from a checkpoint's tensors; heads are ignored for features.

    Raises CheckpointError with a list of all missing, unexpected and mis-shaped keys, or for weights
    that are not finite.
    """
    state: dict[str, Tensor] = {}
    missing: list[str] = []
    misshapen: list[str] = []
    ignored = naming.heads if task == Task.FEATURES else ()
    unexpected = {key for key in tensors if not key.endswith(STEP_COUNTER) and not key.startswith(ignored)}
    for name, shape in parameter_shapes(config, task, has_expansion(tensors, naming)).items():
        keys = naming.source_keys(name)
        unexpected.difference_update(keys)
        part = torch.Size((shape[0] // len(keys), *shape[1:]))
        for key in keys:
            if key not in tensors:
                missing.append(key)
            elif not _fits(tensors[key], part):
                misshapen.append(f"{key} (expected {_format_shape(part)}, got {_format_tensor(tensors[key])})")
        if not missing and not misshapen:
            state[name] = torch.cat([tensors[key].to(torch.float32).reshape(part) for key in keys])
    problems = [
        f"{len(keys)} {problem}: {_listed(keys, MAX_LISTED_KEYS)}"
        for problem, keys in (("missing", missing), ("unexpected", sorted(unexpected)), ("mis-shaped", misshapen))
        if keys
    ]
    if problems:
        raise CheckpointError(
            f"{source}: expected exactly the {naming.name} keys of this MobileViT, got {'; '.join(problems)}; "
            f"{_cause(missing, unexpected, naming)}"
        )
    _check_finite(state, naming, source)
    return state


def _cause(missing: Collection[str], unexpected: Collection[str], naming: Naming) -> str:
    """The likely cause of keys that do not fit."""
    if unexpected and not missing and all(key.startswith(naming.heads) for key in unexpected):
        return "this is no head of a MobileViT: --task features leaves it out"
    if unexpected and not missing:
        return "tensors that the network does not have: leave out what inference does not need"
    return "check the variant, the task and the number of classes"


@cache  # construction takes 0.1 s even without weights, and recognition needs four models
def parameter_shapes(
    config: MobileViTConfig, task: str = Task.CLASSIFICATION, expand: bool = True
) -> Mapping[str, torch.Size]:
    """Shapes of all parameters and batch norm statistics of the model for a task, by name."""
    with torch.device("meta"):
        model = model_for(task, config, expand=expand)
    return {key: tensor.shape for key, tensor in model.state_dict().items() if not key.endswith(STEP_COUNTER)}


def _fits(tensor: Tensor, shape: torch.Size) -> bool:
    # linear layers (out, in) of a checkpoint are 1x1 convolutions (out, in, 1, 1) here
    squeezed = shape[:-2] if shape[2:] == (1, 1) else shape
    is_plain = tensor.is_floating_point() and tensor.layout == torch.strided and not tensor.is_meta
    return is_plain and tensor.shape in (shape, squeezed)


def _check_finite(state: Mapping[str, Tensor], naming: Naming, source: str) -> None:
    not_finite = [name for name, tensor in state.items() if not tensor.isfinite().all()]
    if not_finite:
        keys = [key for name in not_finite for key in naming.source_keys(name)]
        raise CheckpointError(
            f"{source}: expected finite weights, got NaN or infinity in {_listed(keys, MAX_LISTED_KEYS)}; "
            "use an earlier checkpoint of the training"
        )


def _format_tensor(tensor: Tensor) -> str:
    kinds = [str(tensor.dtype)] if not tensor.is_floating_point() else []
    kinds += [str(tensor.layout)] if tensor.layout != torch.strided else []
    kinds += ["no values"] if tensor.is_meta else []
    return " of ".join([_format_shape(tensor.shape), *(kind.removeprefix("torch.") for kind in kinds)])


def _format_shape(shape: torch.Size) -> str:
    return "x".join(map(str, shape)) or "a scalar"


def _listed(keys: Iterable[str], limit: int) -> str:
    keys = list(keys)
    more = f" and {len(keys) - limit} more" if len(keys) > limit else ""
    return ", ".join(keys[:limit]) + more
