"""The operators of model/ops.py against torch's own, and what tracing leaves of them."""

import pytest
import torch
import torch.nn.functional as F

from mobilevit_coreml.model.ops import batch_to_space, channel_layer_norm, resize_bilinear, space_to_batch


@pytest.mark.parametrize("block", [(2, 2), (1, 3), (4, 2)])
def test_space_to_batch_against_unfold(block: tuple[int, int]) -> None:
    x = torch.randn(3, 5, 8, 12)
    unfolded = F.unfold(x, block, stride=block)  # B C*P N
    places = unfolded.view(3, 5, block[0] * block[1], -1).permute(2, 0, 1, 3)  # P B C N
    assert torch.equal(space_to_batch(x, block).flatten(2), places.flatten(0, 1))


@pytest.mark.parametrize("block", [(2, 2), (1, 3), (4, 2)])
def test_batch_to_space_is_the_inverse(block: tuple[int, int]) -> None:
    x = torch.randn(3, 5, 8, 12)
    assert torch.equal(batch_to_space(space_to_batch(x, block), block), x)


def test_channel_layer_norm_against_group_norm() -> None:
    # with one group and one place a map, group norm is the norm over channels
    x, weight, bias = torch.randn(6, 5, 1, 1), torch.rand(5), torch.randn(5)
    assert torch.allclose(channel_layer_norm(x, weight, bias, 1e-3), F.group_norm(x, 1, weight, bias, 1e-3), atol=1e-6)


def test_gradients_flow() -> None:
    x = torch.randn(2, 3, 5, 5, dtype=torch.double, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda x: batch_to_space(space_to_batch(resize_bilinear(x, (6, 6)), (2, 2)) ** 2, (2, 2)), (x,)
    )


def test_each_is_one_node_of_a_trace() -> None:
    def program(x: torch.Tensor) -> torch.Tensor:
        x = channel_layer_norm(space_to_batch(x, (2, 2)), torch.ones(2), torch.ones(2), 1e-5)
        return resize_bilinear(batch_to_space(x, (2, 2)), (5, 7))

    with pytest.warns(DeprecationWarning, match="jit"):
        graph = torch.jit.trace(program, torch.randn(1, 2, 4, 6)).graph
    kinds = [node.kind() for node in graph.nodes() if node.kind().startswith("mobilevit_coreml")]
    names = ("space_to_batch", "channel_layer_norm", "batch_to_space", "resize_bilinear")
    assert kinds == [f"mobilevit_coreml::{name}" for name in names]
    assert not any(node.kind() in ("aten::permute", "aten::layer_norm", "aten::movedim") for node in graph.nodes())
