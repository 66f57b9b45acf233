"""A small decoder that writes out its norms, its rotary embedding and its attention, as much code does."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F


class Norm(torch.nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.rand(width) + 0.5)

    def forward(self, x: Any) -> Any:
        wide = x.float()
        return self.weight * (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-6)).to(x)


def turned(x: Any) -> Any:
    half = x.shape[-1] // 2
    return torch.cat((-x[..., half:], x[..., :half]), -1)


class Block(torch.nn.Module):
    """Four query heads of width 8 share two key/value heads."""

    def __init__(self) -> None:
        super().__init__()
        self.before, self.between = torch.nn.LayerNorm(32), Norm(32)
        self.q, self.o = torch.nn.Linear(32, 32), torch.nn.Linear(32, 32)
        self.k, self.v = torch.nn.Linear(32, 16), torch.nn.Linear(32, 16)
        self.gate, self.up = torch.nn.Linear(32, 64), torch.nn.Linear(32, 64)
        self.down = torch.nn.Linear(64, 32)

    def forward(self, x: Any, mask: Any, cos: Any, sin: Any) -> Any:
        batch, tokens, width = x.shape
        y = self.before(x)
        q, k, v = (
            f(y).view(batch, tokens, -1, 8).transpose(1, 2) for f in (self.q, self.k, self.v)
        )
        q, k = (z * cos + turned(z) * sin for z in (q, k))
        k, v = (
            z[:, :, None].expand(batch, 2, 2, tokens, 8).reshape(batch, 4, tokens, 8)
            for z in (k, v)
        )
        scores = q @ k.transpose(2, 3) / 8**0.5 + mask
        y = F.softmax(scores, -1, dtype=torch.float32).to(q) @ v
        x = x + self.o(y.transpose(1, 2).reshape(batch, tokens, width))
        y = self.between(x)
        return x + self.down(F.silu(self.gate(y)) + F.gelu(self.up(y)))


class Decoder(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = torch.nn.ModuleList(Block() for _ in range(2))

    def forward(self, x: Any, mask: Any, cos: Any, sin: Any) -> Any:
        for block in self.blocks:
            x = block(x, mask, cos, sin)
        return x


def arguments() -> tuple[Any, ...]:
    return torch.randn(2, 5, 32), torch.zeros(1, 1, 5, 5), torch.rand(5, 8), torch.rand(5, 8)
