"""Other people's MobileViT to compare with, and how to compare."""

import dataclasses
import sys
from typing import Any

import torch
from torch import Tensor, nn

from mobilevit_coreml.checkpoints.cvnets import CVNETS
from mobilevit_coreml.checkpoints.hugging_face import HUGGING_FACE
from mobilevit_coreml.checkpoints.naming import infer_config, own_state, recognize
from mobilevit_coreml.checkpoints.timm import TIMM
from mobilevit_coreml.config import VARIANTS
from mobilevit_coreml.model import ImageClassifier


def make_torchvision_importable() -> None:
    """Let timm and transformers import torchvision where its native library does not fit torch's build.

    PyPI's torchvision is linked against CUDA; beside a CPU build of torch its import fails for want
    of two operators, which nothing here calls. Knowing their names is enough.
    """
    global _torchvision_library
    try:
        import torchvision
    except RuntimeError:
        for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
            del sys.modules[name]
        _torchvision_library = torch.library.Library("torchvision", "FRAGMENT")
        for name in ("nms", "qnms"):
            _torchvision_library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        import torchvision  # noqa: F401


_torchvision_library: torch.library.Library | None = None  # the definitions last as long as this does
make_torchvision_importable()

NAMINGS = (HUGGING_FACE, CVNETS, TIMM)


def hugging_face_classifier(variant: str, classes: int = 1000, **overrides: Any) -> Any:
    """transformers' classifier in eval mode, with random weights, statistics and affine terms."""
    from transformers import MobileViTConfig, MobileViTForImageClassification

    published = VARIANTS[variant]
    config = MobileViTConfig(
        hidden_sizes=list(published.hidden_sizes),
        neck_hidden_sizes=list(published.neck_hidden_sizes),
        expand_ratio=published.expand_ratio,
        **({} if "id2label" in overrides else {"num_labels": classes}),
        **overrides,
    )
    return randomize(MobileViTForImageClassification(config))


def timm_classifier(variant: str, classes: int = 1000) -> Any:
    """timm's classifier in eval mode, with random weights, statistics and affine terms."""
    import timm

    return randomize(timm.create_model(f"mobilevit_{variant}", num_classes=classes))


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


def ours(peer: nn.Module, image_size: int | tuple[int, int] = 256, attention: str = "split_einsum") -> Any:
    """This package's classifier with a peer's weights, through the checkpoint code."""
    naming, tensors = recognize(peer.state_dict(), NAMINGS, "peer")
    config = dataclasses.replace(infer_config(tensors, naming), image_size=image_size)
    model = ImageClassifier(config, attention)
    model.load_state_dict(own_state(tensors, naming, config, "peer"), strict=False)
    return model.eval()


def images(batch: int, height: int, width: int, seed: int = 0) -> Tensor:
    """Pixels (B, 3, H, W) in 0..1."""
    return torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(seed))


def snr(reference: Tensor, output: Tensor) -> float:
    """10 log10(sum ref^2 / sum (ref - out)^2), dB."""
    assert reference.shape == output.shape
    reference, output = reference.detach().double(), output.detach().double()
    return float(10 * torch.log10((reference**2).sum() / ((reference - output) ** 2).sum()))
