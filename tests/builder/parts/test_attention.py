"""Multi-head attention against PyTorch's own."""

import torch
from torch import nn

from builder.parts.layers import MultiHeadAttention


def test_equals_pytorchs_with_masked_keys():
    torch.manual_seed(0)
    theirs = nn.MultiheadAttention(24, 3, batch_first=True)
    nn.init.normal_(theirs.in_proj_bias)
    nn.init.normal_(theirs.out_proj.bias)
    ours = MultiHeadAttention(24, 3)
    ours.load_state_dict(theirs.state_dict())
    query, key, value = torch.randn(2, 5, 24), torch.randn(2, 7, 24), torch.randn(2, 7, 24)
    padding = torch.arange(7) >= torch.tensor([[7], [2]])
    expected, _ = theirs(query, key, value, key_padding_mask=padding)
    bias = torch.where(padding, -1e9, 0.0)[:, None, None]
    torch.testing.assert_close(ours(query, key, value, bias), expected, atol=1e-6, rtol=0)


def test_query_and_key_of_one_tensor_give_what_two_give():
    """One product makes both; the decoders' self-attention is of this kind."""
    torch.manual_seed(0)
    attention = MultiHeadAttention(24, 3)
    nn.init.normal_(attention.in_proj_bias)
    placed, value = torch.randn(2, 5, 24), torch.randn(2, 5, 24)
    torch.testing.assert_close(attention(placed, placed, value), attention(placed, placed.clone(), value))
