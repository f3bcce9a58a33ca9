"""Multi-head self-attention on (B, D, 1, N), in two equivalent implementations."""

import math
from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mobilevit_coreml.config import AttentionImplementation


class SelfAttention(nn.Module):
    """Self-attention over N tokens (Mehta & Rastegari 2022, section 3.1): (B, D, 1, N) -> (B, D, 1, N).

    The linear layers are 1x1 convolutions, with one for queries, keys and values. `implementation` is
    a key of ATTENTION_IMPLEMENTATIONS. Sizes are fixed at construction, because arithmetic on traced
    shapes would become operations of the Core ML program.
    """

    def __init__(
        self, width: int, heads: int, tokens: int, implementation: str, qkv_bias: bool, dropout: float
    ) -> None:
        super().__init__()
        self.heads = heads
        self.head_width = width // heads
        self.tokens = tokens
        # None after `fold_for_inference` has multiplied the query weights by it
        self.scale: float | None = 1 / math.sqrt(self.head_width)
        self.qkv = nn.Conv2d(width, 3 * width, 1, bias=qkv_bias)
        self.dropout = nn.Dropout(dropout)
        self.out = nn.Conv2d(width, width, 1)
        self.attend = ATTENTION_IMPLEMENTATIONS[implementation]

    def forward(self, x: Tensor) -> Tensor:
        return self.attend(self, x)


def split_einsum(attention: SelfAttention, x: Tensor) -> Tensor:
    """Per-head einsum with softmax over the channel axis, as in Apple's ml-ane-transformers.

    One transpose per layer, of the keys of all heads.
    """
    q, k, v = attention.qkv(x).chunk(3, dim=1)  # B D 1 N
    if attention.scale is not None:
        q = q * attention.scale
    k = k.transpose(1, 3)  # B N 1 D
    width = attention.head_width
    contexts = []
    for q_h, k_h, v_h in zip(q.split(width, 1), k.split(width, 3), v.split(width, 1), strict=True):
        scores = torch.einsum("bchq,bkhc->bkhq", q_h, k_h)  # B N_k 1 N_q
        weights = attention.dropout(scores.softmax(dim=1))
        contexts.append(torch.einsum("bkhq,bchk->bchq", weights, v_h))  # B D/heads 1 N
    return attention.out(torch.cat(contexts, dim=1))


def packed(attention: SelfAttention, x: Tensor) -> Tensor:
    """All heads in one rank-4 matmul: fewest operations, no transpose, one reshape.

    The output projection is a convolution with a (D/heads, 1) kernel over (B, heads, D/heads, N),
    which is equal to a reshape to (B, D, 1, N) and a 1x1 convolution.
    """
    heads, width = attention.heads, attention.head_width
    q, k, v = attention.qkv(x).reshape(-1, 3 * heads, width, attention.tokens).chunk(3, dim=1)  # B heads D/heads N
    if attention.scale is not None:
        q = q * attention.scale
    weights = attention.dropout((q.transpose(2, 3) @ k).softmax(dim=3))  # B heads N_q N_k
    context = v @ weights.transpose(2, 3)  # B heads D/heads N
    if attention.out.kernel_size != (1, 1):  # folded
        return attention.out(context)  # B D 1 N
    return F.conv2d(context, attention.out.weight.view(heads * width, heads, width, 1), attention.out.bias)


def projection_over_heads(out: nn.Conv2d, heads: int) -> nn.Conv2d:
    """The output projection as a convolution over (B, heads, D/heads, N), for the packed implementation."""
    width = out.in_channels // heads
    conv = nn.Conv2d(heads, out.out_channels, (width, 1))
    assert out.bias is not None
    conv.load_state_dict({"weight": out.weight.view(conv.weight.shape), "bias": out.bias})
    return conv


ATTENTION_IMPLEMENTATIONS: Mapping[str, Callable[[SelfAttention, Tensor], Tensor]] = {
    AttentionImplementation.SPLIT_EINSUM: split_einsum,
    AttentionImplementation.PACKED: packed,
}
