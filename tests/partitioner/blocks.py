"""Small PyTorch models with the structure of the real ones, which DTensor can run."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F


class GptBlock(nn.Module):
    """GPT-2's block: layer norm, attention without a fused kernel, GELU."""

    def __init__(self, width: int = 32, heads: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.key = nn.Linear(width, width), nn.Linear(width, width)
        self.value, self.out = nn.Linear(width, width), nn.Linear(width, width)
        self.fc, self.proj = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x[b, s, width] -> [b, s, width]."""
        b, s, width = x.shape
        y = self.ln_1(x)
        query, key, value = (
            p(y).view(b, s, self.heads, width // self.heads).transpose(1, 2)
            for p in (self.query, self.key, self.value)
        )
        scores = torch.matmul(query, key.transpose(-1, -2)) * 0.125
        mixed = torch.matmul(torch.softmax(scores, dim=-1), value)
        x = x + self.out(mixed.transpose(1, 2).reshape(b, s, width))
        return x + self.proj(F.gelu(self.fc(self.ln_2(x))))


class RmsNorm(nn.Module):
    """Llama's norm, as its code writes it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Any shape, normed over the last dim."""
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))


class LlamaBlock(nn.Module):
    """Llama's block: RMS norm, grouped queries, gated feed-forward."""

    def __init__(self, width: int = 32, heads: int = 8, kv_heads: int = 4) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head = heads, kv_heads, width // heads
        self.norm_1, self.norm_2 = RmsNorm(width), RmsNorm(width)
        self.query = nn.Linear(width, width, bias=False)
        self.key = nn.Linear(width, kv_heads * self.head, bias=False)
        self.value = nn.Linear(width, kv_heads * self.head, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.gate = nn.Linear(width, 3 * width, bias=False)
        self.up = nn.Linear(width, 3 * width, bias=False)
        self.down = nn.Linear(3 * width, width, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x[b, s, width] -> [b, s, width]."""
        b, s, width = x.shape
        y = self.norm_1(x)
        query = self.query(y).view(b, s, self.heads, self.head).transpose(1, 2)
        key = self._repeat(self.key(y).view(b, s, self.kv_heads, self.head).transpose(1, 2))
        value = self._repeat(self.value(y).view(b, s, self.kv_heads, self.head).transpose(1, 2))
        scores = torch.matmul(query, key.transpose(-1, -2)) * 0.25
        mixed = torch.matmul(torch.softmax(scores, dim=-1), value)
        x = x + self.out(mixed.transpose(1, 2).reshape(b, s, width))
        y = self.norm_2(x)
        return x + self.down(F.silu(self.gate(y)) * self.up(y))

    def _repeat(self, x: torch.Tensor) -> torch.Tensor:
        b, g, s, d = x.shape
        r = self.heads // self.kv_heads
        return x[:, :, None].expand(b, g, r, s, d).reshape(b, g * r, s, d)


class Bottleneck(nn.Module):
    """ResNet's bottleneck; batch norm with running statistics."""

    def __init__(self, width: int = 16, inner: int = 8) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(width, inner, 1, bias=False)
        self.spatial = nn.Conv2d(inner, inner, 3, padding=1, bias=False)
        self.expand = nn.Conv2d(inner, width, 1, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x[n, width, y, x] -> the same shape."""
        y = F.relu(self.reduce(x))
        y = F.relu(self.spatial(y))
        return F.relu(x + self.expand(y))


class BottleneckOfTaps(nn.Module):
    """`Bottleneck` with channels last, each convolution as the sum of its taps' linear layers.

    It communicates as the convolutions do, since taps only shift pixels, which are not split. DTensor has no
    rule for convolutions whose channels are split, but one for linear layers.
    """

    def __init__(self, width: int = 16, inner: int = 8) -> None:
        super().__init__()
        self.reduce = nn.Linear(width, inner, bias=False)
        self.entry = nn.Identity()
        self.spatial = nn.ModuleList(nn.Linear(inner, inner, bias=False) for _ in range(9))
        self.expand = nn.Linear(inner, width, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x[n, y, x, width] -> the same shape."""
        y = self.entry(F.relu(self.reduce(x)))
        y = F.relu(sum(tap(y) for tap in self.spatial))
        return F.relu(x + self.expand(y))
