"""Other people's MobileViT to compare with, and how to compare."""

import dataclasses
from typing import Any

import torch
from torch import Tensor, nn

from mobilevit_coreml.checkpoints.cvnets import CVNETS
from mobilevit_coreml.checkpoints.hugging_face import HUGGING_FACE
from mobilevit_coreml.checkpoints.naming import has_expansion, infer_config, infer_task, recognize, remap_state_dict
from mobilevit_coreml.checkpoints.timm import TIMM
from mobilevit_coreml.config import VARIANTS
from mobilevit_coreml.model import model_for
from mobilevit_coreml.validation.framework_worker import make_torchvision_importable

make_torchvision_importable()

NAMINGS = (HUGGING_FACE, CVNETS, TIMM)


def hugging_face_classifier(variant: str, classes: int = 1000, **overrides: Any) -> Any:
    """transformers' classifier in eval mode, with random weights, statistics and affine terms."""
    from transformers import MobileViTForImageClassification

    labels = {} if "id2label" in overrides else {"num_labels": classes}
    return randomize(MobileViTForImageClassification(_hugging_face_config(variant, **labels, **overrides)))


def hugging_face_segmenter(variant: str, classes: int = 21, **overrides: Any) -> Any:
    """transformers' DeepLabV3 in eval mode, with random weights, statistics and affine terms; output stride 16."""
    from transformers import MobileViTForSemanticSegmentation

    labels = {} if "id2label" in overrides else {"num_labels": classes}
    values = {"output_stride": 16, "image_size": 512, **labels, **overrides}
    return randomize(MobileViTForSemanticSegmentation(_hugging_face_config(variant, **values)))


def hugging_face_backbone(variant: str, expand_output: bool = True, **overrides: Any) -> Any:
    """transformers' model without a head in eval mode, with random weights, statistics and affine terms."""
    from transformers import MobileViTModel

    return randomize(MobileViTModel(_hugging_face_config(variant, **overrides), expand_output=expand_output))


def _hugging_face_config(variant: str, **overrides: Any) -> Any:
    from transformers import MobileViTConfig

    published = VARIANTS[variant]
    return MobileViTConfig(
        hidden_sizes=list(published.hidden_sizes),
        neck_hidden_sizes=list(published.neck_hidden_sizes),
        expand_ratio=published.expand_ratio,
        **overrides,
    )


def timm_classifier(variant: str, classes: int = 1000, **options: Any) -> Any:
    """timm's classifier in eval mode, with random weights, statistics and affine terms; 0 classes pool only."""
    import timm

    return randomize(timm.create_model(f"mobilevit_{variant}", num_classes=classes, **options))


def cvnets_state(peer: nn.Module) -> dict[str, Tensor]:
    """A state dict as ml-cvnets v0.1 saves it, from one of transformers' models.

    Written from the names transformers' conversion script knows, independently of the table under test.
    """
    tensors = peer.state_dict()
    # of a segmenter the backbone is one of two parts, of a classifier it is the model itself
    prefix = "encoder." if any(key.startswith("segmentation_head.") for key in tensors) else ""
    state = {}
    for key, tensor in tensors.items():
        if ".attention.attention." not in key:
            name = _cvnets_key(key)
            state[name if name.startswith(("seg_head.", "classifier.")) else prefix + name] = tensor
        elif ".query." in key:
            qkv = [tensors[key.replace("query", part)] for part in ("query", "key", "value")]
            state[prefix + _cvnets_key(key.replace("query", "qkv"))] = torch.cat(qkv)
    return state


def _cvnets_key(key: str) -> str:
    depths = {2: 2, 3: 4, 4: 3}
    parts = key.removeprefix("mobilevit.").split(".")
    if parts[0] == "classifier":
        return f"classifier.fc.{parts[1]}"
    leaf = parts[-1]
    kind = {"convolution": "block.conv", "normalization": "block.norm"}.get(parts[-2], "")
    if parts[0] == "segmentation_head":
        where = {
            "classifier": "classifier.classifier",
            "aspp.convs.4.conv_1x1": "aspp.aspp_layer.convs.4.aspp_pool.conv_1x1",
            "aspp.project": "aspp.aspp_layer.project",
            **{f"aspp.convs.{branch}": f"aspp.aspp_layer.convs.{branch}" for branch in range(4)},
        }[".".join(parts[1:-2])]
        return f"seg_head.{where}.{kind}.{leaf}"
    if parts[0] in ("conv_stem", "conv_1x1_exp"):
        return f"{'conv_1' if parts[0] == 'conv_stem' else parts[0]}.{kind}.{leaf}"
    stage = int(parts[2])
    layer = f"layer_{stage + 1}"
    inverted = {"expand_1x1": "exp_1x1", "conv_3x3": "conv_3x3", "reduce_1x1": "red_1x1"}
    if parts[3] == "layer":
        return f"{layer}.{parts[4]}.block.{inverted[parts[5]]}.{kind}.{leaf}"
    if parts[3] == "downsampling_layer":
        return f"{layer}.0.block.{inverted[parts[4]]}.{kind}.{leaf}"
    if parts[3] == "transformer":
        inside = {
            "layernorm_before": "pre_norm_mha.0",
            "attention.attention.qkv": "pre_norm_mha.1.qkv_proj",
            "attention.output.dense": "pre_norm_mha.1.out_proj",
            "layernorm_after": "pre_norm_ffn.0",
            "intermediate.dense": "pre_norm_ffn.1",
            "output.dense": "pre_norm_ffn.4",
        }[".".join(parts[6:-1])]
        return f"{layer}.1.global_rep.{parts[5]}.{inside}.{leaf}"
    if parts[3] == "layernorm":
        return f"{layer}.1.global_rep.{depths[stage]}.{leaf}"
    block = {
        "conv_kxk": "local_rep.conv_3x3",
        "conv_1x1": "local_rep.conv_1x1",
        "conv_projection": "conv_proj",
        "fusion": "fusion",
    }[parts[3]]
    return f"{layer}.1.{block}.{kind}.{leaf}"


@torch.no_grad()
def randomize(model: nn.Module, seed: int = 0) -> Any:
    """Fill a model with values under which no two channels, biases or statistics are alike.

    Fresh batch norms are the identity, and would hide a wrong order, a missing bias or a wrong fold.
    """
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.normal_(0, 0.2, generator=generator)
            module.running_var.uniform_(0.5, 2, generator=generator)
        if isinstance(module, nn.BatchNorm2d | nn.LayerNorm):
            module.weight.uniform_(0.5, 1.5, generator=generator)
            module.bias.normal_(0, 0.2, generator=generator)
        elif isinstance(module, nn.Conv2d | nn.Linear):
            fan_in = module.weight[0].numel()
            module.weight.normal_(0, (2 / fan_in) ** 0.5, generator=generator)
            if module.bias is not None:
                module.bias.normal_(0, 0.2, generator=generator)
    return model.eval()


def ours(
    peer: nn.Module,
    image_size: int | tuple[int, int] = 256,
    attention: str = "split_einsum",
    unfold: str = "space_to_batch",
    **untold: Any,
) -> Any:
    """This package's model for a peer's task with its weights, through the checkpoint code.

    `untold` are the settings that shapes cannot tell, such as the output stride.
    """
    naming, tensors = recognize(peer.state_dict(), NAMINGS, "peer")
    task = infer_task(tensors, naming)
    config = dataclasses.replace(infer_config(tensors, naming, task), image_size=image_size, **untold)
    model = model_for(task, config, attention, unfold, has_expansion(tensors, naming))
    model.load_state_dict(remap_state_dict(tensors, naming, config, "peer", task), strict=False)
    return model.eval()


def images(batch: int, height: int, width: int, seed: int = 0, channels: int = 3) -> Tensor:
    """Pixels (B, channels, H, W) in 0..1."""
    return torch.rand(batch, channels, height, width, generator=torch.Generator().manual_seed(seed))


def snr(reference: Tensor, output: Tensor) -> float:
    """10 log10(sum ref^2 / sum (ref - out)^2), dB."""
    assert reference.shape == output.shape
    reference, output = reference.detach().double(), output.detach().double()
    return float(10 * torch.log10((reference**2).sum() / ((reference - output) ** 2).sum()))
