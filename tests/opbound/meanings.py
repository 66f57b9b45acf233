"""One small module per meaning, in the ways that people write it."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn


class Of(nn.Module):
    """A function of its arguments and of some weights."""

    def __init__(self, function: Any, *weights: tuple[int, ...]) -> None:
        super().__init__()
        self.function = function
        self.w = nn.ParameterList(nn.Parameter(torch.rand(s) + 0.5) for s in weights)

    def forward(self, *x: Any) -> Any:
        return self.function(*x, *self.w)


def var_norm(x, w, b):
    mean = x.mean(-1, keepdim=True)
    var = ((x - mean) ** 2).mean(-1, keepdim=True)
    return (x - mean) / torch.sqrt(var + 1e-5) * w + b


def std_norm(x, w, b):
    var, mean = torch.var_mean(x, -1, unbiased=False, keepdim=True)
    return w * (x - mean) * torch.rsqrt(var + 1e-5) + b


def square_norm(x, w, b):
    mean = x.mean(-1, keepdim=True)
    var = (x * x).mean(-1, keepdim=True) - mean * mean
    return (x - mean) * torch.rsqrt(var + 1e-5) * w + b


NORM = (2, 16, 32)
LAYER = {
    "torch": Of(lambda x, w, b: F.layer_norm(x, (32,), w, b), (32,), (32,)),
    "written": Of(var_norm, (32,), (32,)),
    "var_mean": Of(std_norm, (32,), (32,)),
    "squares": Of(square_norm, (32,), (32,)),
}


def rms(how, cast=False):
    def f(x, w):
        y = x.float() if cast else x
        if how == "pow":
            y = y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + 1e-6)
        elif how == "mul":
            y = y * torch.rsqrt((y * y).mean(-1, keepdim=True) + 1e-6)
        elif how == "sqrt":
            y = y / torch.sqrt(y.pow(2).mean(-1, keepdim=True) + 1e-6)
        elif how == "norm":
            y = y * torch.rsqrt((y.norm(2, dim=-1, keepdim=True) / 32**0.5) ** 2 + 1e-6)
        elif how == "sum":
            y = y * torch.rsqrt(y.pow(2).sum(-1, keepdim=True) / 32 + 1e-6)
        elif how == "gemma":
            y = y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + 1e-6)
            return (y * (1.0 + w.float())).to(x.dtype)
        return w * y.to(x.dtype)

    return Of(f, (32,))


RMS = {
    "torch": Of(lambda x, w: F.rms_norm(x, (32,), w, 1e-6), (32,)),
    **{h: rms(h) for h in ("pow", "mul", "sqrt", "sum")},
}
X3 = (torch.randn(2, 16, 32),)
X4 = (torch.randn(2, 8, 6, 6),)


def group(x, w, b):
    n = x.shape[0]
    y = x.reshape(n, 4, -1)
    m = y.mean(-1, keepdim=True)
    v = ((y - m) ** 2).mean(-1, keepdim=True)
    y = ((y - m) / torch.sqrt(v + 1e-5)).reshape(x.shape)
    return y * w[:, None, None] + b[:, None, None]


def group5(x, w, b):
    n, c, h, ww = x.shape
    y = x.view(n, 4, c // 4, h, ww)
    v, m = torch.var_mean(y, (2, 3, 4), unbiased=False, keepdim=True)
    y = ((y - m) * torch.rsqrt(v + 1e-5)).view(n, c, h, ww)
    return y * w.view(1, c, 1, 1) + b.view(1, c, 1, 1)


GROUP = {
    "torch": Of(lambda x, w, b: F.group_norm(x, 4, w, b), (8,), (8,)),
    "written": Of(group, (8,), (8,)),
    "written5": Of(group5, (8,), (8,)),
}


def instance(x, w, b):
    v, m = torch.var_mean(x, (2, 3), unbiased=False, keepdim=True)
    return (x - m) / torch.sqrt(v + 1e-5) * w[:, None, None] + b[:, None, None]


INSTANCE = {
    "torch": Of(lambda x, w, b: F.instance_norm(x, None, None, w, b), (8,), (8,)),
    "written": Of(instance, (8,), (8,)),
}
SOFTMAX = {
    "torch": Of(lambda x: F.softmax(x, -1)),
    "amax": Of(lambda x: (e := torch.exp(x - x.amax(-1, keepdim=True))) / e.sum(-1, keepdim=True)),
}
GELU = {
    "torch": Of(F.gelu),
    "erf": Of(lambda x: 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))),
    "erf2": Of(lambda x: x * 0.5 * (1.0 + torch.erf(x * 0.7071067811865475))),
    "cdf": Of(lambda x: x * torch.special.ndtr(x)),
}
GELU_TANH = {
    "torch": Of(lambda x: F.gelu(x, approximate="tanh")),
    "new": Of(
        lambda x: (
            0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * torch.pow(x, 3.0))))
        )
    ),
    "fast": Of(lambda x: 0.5 * x * (1 + torch.tanh(x * 0.7978845608 * (1.0 + 0.044715 * x * x)))),
    "bloom": Of(lambda x: x * 0.5 * (1.0 + torch.tanh(0.79788456 * x * (1 + 0.044715 * x * x)))),
    "mega": Of(
        lambda x: 0.5 * x * (1.0 + torch.tanh(0.7978845608028654 * x * (1.0 + 0.044715 * x * x)))
    ),
}
QUICK = {
    "sigmoid": Of(lambda x: x * torch.sigmoid(1.702 * x)),
    "right": Of(lambda x: torch.sigmoid(x * 1.702) * x),
}
SILU = {
    "torch": Of(F.silu),
    "written": Of(lambda x: x * torch.sigmoid(x)),
    "exp": Of(lambda x: x / (1 + torch.exp(-x))),
    "sigmoid_exp": Of(lambda x: x * (1 / (1 + torch.exp(-x)))),
}
MISH = {
    "torch": Of(F.mish),
    "written": Of(lambda x: x * torch.tanh(F.softplus(x))),
    "log": Of(lambda x: x * torch.tanh(torch.log(1 + torch.exp(x)))),
    "log1p": Of(lambda x: x * torch.tanh(torch.log1p(torch.exp(x)))),
}
HARDSWISH = {
    "torch": Of(F.hardswish),
    "relu6": Of(lambda x: x * F.relu6(x + 3) / 6),
    "clamp": Of(lambda x: x * torch.clamp(x + 3, 0, 6) / 6),
    "sigmoid": Of(lambda x: x * F.hardsigmoid(x)),
    "relu6inner": Of(lambda x: x * (F.relu6(x + 3) / 6)),
    "hardtanh": Of(lambda x: F.hardtanh(x + 3, 0, 6) * x / 6),
    "min": Of(lambda x: x * torch.clamp(x / 6 + 0.5, 0, 1)),
}
HARDSIGMOID = {
    "torch": Of(F.hardsigmoid),
    "relu6": Of(lambda x: F.relu6(x + 3) / 6),
}
W = ((64, 32), (64, 32), (32, 64))
SWIGLU = {
    "two": Of(lambda x, g, u, d: (F.silu(x @ g.T) * (x @ u.T)) @ d.T, *W),
    "linear": Of(lambda x, g, u, d: F.linear(F.silu(F.linear(x, g)) * F.linear(x, u), d), *W),
    "written": Of(
        lambda x, g, u, d: F.linear((y := F.linear(x, g)) * torch.sigmoid(y) * F.linear(x, u), d),
        *W,
    ),
}


def fused_gate(x, gu, d):
    g, u = F.linear(x, gu).chunk(2, -1)
    return F.linear(F.silu(g) * u, d)


def split_gate(x, gu, d):
    y = F.linear(x, gu)
    return F.linear(F.silu(y[..., :64]) * y[..., 64:], d)


def glu(x, gu, d):
    return F.linear(F.silu(F.linear(x, gu)[..., 64:]) * F.linear(x, gu)[..., :64], d)


SWIGLU_FUSED = {
    "chunk": Of(fused_gate, (128, 32), (32, 64)),
    "slice": Of(split_gate, (128, 32), (32, 64)),
}

Q = (2, 4, 16, 8)
QKV = (torch.randn(Q), torch.randn(Q), torch.randn(Q))
S = 8**-0.5


def att(f):
    return Of(f)


ATTENTION = {
    "sdpa": att(lambda q, k, v: F.scaled_dot_product_attention(q, k, v)),
    "eager": att(lambda q, k, v: F.softmax(q @ k.transpose(-1, -2) * S, -1) @ v),
    "div": att(lambda q, k, v: F.softmax(q @ k.transpose(-1, -2) / 8**0.5, -1) @ v),
    "einsum": att(
        lambda q, k, v: torch.einsum(
            "bhst,bhtd->bhsd", F.softmax(torch.einsum("bhsd,bhtd->bhst", q, k) * S, -1), v
        )
    ),
    "float": att(
        lambda q, k, v: F.softmax(q @ k.transpose(-1, -2) * S, -1, dtype=torch.float32).to(q) @ v
    ),
    "baddbmm": att(
        lambda q, k, v: torch.bmm(
            F.softmax(
                torch.baddbmm(
                    torch.zeros(8, 16, 16),
                    q.reshape(8, 16, 8),
                    k.reshape(8, 16, 8).transpose(1, 2),
                    beta=0,
                    alpha=S,
                ),
                -1,
            ),
            v.reshape(8, 16, 8),
        ).view(2, 4, 16, 8)
    ),
    "bmm": att(
        lambda q, k, v: torch.bmm(
            F.softmax(torch.bmm(q.reshape(8, 16, 8) * S, k.reshape(8, 16, 8).transpose(1, 2)), -1),
            v.reshape(8, 16, 8),
        ).view(2, 4, 16, 8)
    ),
    "kq": att(lambda q, k, v: F.softmax((k @ q.transpose(-1, -2)).transpose(-1, -2) * S, -1) @ v),
    "written": att(
        lambda q, k, v: (
            (e := torch.exp((s := q @ k.transpose(-1, -2) * S) - s.amax(-1, keepdim=True)))
            / e.sum(-1, keepdim=True)
            @ v
        )
    ),
}
X = (torch.randn(2, 16, 4, 8),)
QKV_LAST = (torch.randn(2, 16, 4, 8), torch.randn(2, 16, 4, 8), torch.randn(2, 16, 4, 8))
ATTENTION_LAST = {
    "sdpa": att(
        lambda q, k, v: (
            F.scaled_dot_product_attention(*(t.transpose(1, 2) for t in (q, k, v)))
            .transpose(1, 2)
            .reshape(2, 16, 32)
        )
    ),
    "eager": att(
        lambda q, k, v: (
            (
                F.softmax(q.transpose(1, 2) @ k.transpose(1, 2).transpose(-1, -2) * S, -1)
                @ v.transpose(1, 2)
            )
            .transpose(1, 2)
            .reshape(2, 16, 32)
        )
    ),
    "permute": att(
        lambda q, k, v: (
            (F.softmax(q.transpose(1, 2) @ k.permute(0, 2, 3, 1) * S, -1) @ v.transpose(1, 2))
            .transpose(1, 2)
            .reshape(2, 16, 32)
        )
    ),
    "einsum": att(
        lambda q, k, v: torch.einsum(
            "bhst,bthd->bshd", F.softmax(torch.einsum("bshd,bthd->bhst", q, k) * S, -1), v
        ).reshape(2, 16, 32)
    ),
}
MASKED_ARGS = (*QKV, torch.randn(2, 1, 16, 16))
MASK_ADD = {
    "sdpa": att(lambda q, k, v, m: F.scaled_dot_product_attention(q, k, v, attn_mask=m)),
    "eager": att(lambda q, k, v, m: F.softmax(q @ k.transpose(-1, -2) * S + m, -1) @ v),
    "baddbmm": att(
        lambda q, k, v, m: torch.bmm(
            F.softmax(
                torch.baddbmm(
                    m.expand(2, 4, 16, 16).reshape(8, 16, 16),
                    q.reshape(8, 16, 8),
                    k.reshape(8, 16, 8).transpose(1, 2),
                    alpha=S,
                ),
                -1,
            ),
            v.reshape(8, 16, 8),
        ).view(2, 4, 16, 8)
    ),
    "einsum": att(
        lambda q, k, v, m: torch.einsum(
            "bhst,bhtd->bhsd", F.softmax(torch.einsum("bhsd,bhtd->bhst", q, k) * S + m, -1), v
        )
    ),
}
BOOL_ARGS = (*QKV, torch.rand(2, 1, 16, 16) > 0.3)
MASK_BOOL = {
    "sdpa": att(lambda q, k, v, m: F.scaled_dot_product_attention(q, k, v, attn_mask=m)),
    "fill": att(
        lambda q, k, v, m: (
            F.softmax(
                (q @ k.transpose(-1, -2) * S).masked_fill(~m, torch.finfo(torch.float32).min), -1
            )
            @ v
        )
    ),
    "where": att(
        lambda q, k, v, m: F.softmax(torch.where(m, q @ k.transpose(-1, -2) * S, -1e9), -1) @ v
    ),
    "inf": att(
        lambda q, k, v, m: (
            F.softmax((q @ k.transpose(-1, -2) * S).masked_fill(m.logical_not(), float("-inf")), -1)
            @ v
        )
    ),
}


def causal_eager(q, k, v):
    m = torch.ones(16, 16, dtype=torch.bool).tril()
    return F.softmax((q @ k.transpose(-1, -2) * S).masked_fill(~m, float("-inf")), -1) @ v


def causal_triu(q, k, v):
    m = torch.full((16, 16), float("-inf")).triu(1)
    return F.softmax(q @ k.transpose(-1, -2) * S + m, -1) @ v


def causal_arange(q, k, v):
    i = torch.arange(16)
    m = i[None, :] <= i[:, None]
    return (
        F.softmax(torch.where(m, q @ k.transpose(-1, -2) * S, torch.finfo(torch.float32).min), -1)
        @ v
    )


class Buffered(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer(
            "bias", torch.tril(torch.ones(32, 32, dtype=torch.bool)).view(1, 1, 32, 32)
        )

    def forward(self, q, k, v):
        w = q @ k.transpose(-1, -2) * S
        m = self.bias[:, :, :16, :16]
        w = torch.where(m, w, torch.full([], torch.finfo(w.dtype).min, dtype=w.dtype))
        return F.softmax(w, -1) @ v


CAUSAL = {
    "sdpa": att(lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True)),
    "tril": att(causal_eager),
    "triu": att(causal_triu),
    "arange": att(causal_arange),
    "buffer": Buffered(),
}


def slid(q, k, v):
    i = torch.arange(16)
    m = (i[None, :] <= i[:, None]) & (i[None, :] > i[:, None] - 4)
    return (
        F.softmax(torch.where(m, q @ k.transpose(-1, -2) * S, torch.finfo(torch.float32).min), -1)
        @ v
    )


def slid_sdpa(q, k, v):
    i = torch.arange(16)
    m = (i[None, :] <= i[:, None]) & (i[None, :] > i[:, None] - 4)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=m)


SLIDING = {"sdpa": att(slid_sdpa), "where": att(slid)}
KV = (2, 2, 16, 8)
GQA_ARGS = (torch.randn(Q), torch.randn(KV), torch.randn(KV))


def rep(x):
    return x[:, :, None].expand(2, 2, 2, 16, 8).reshape(2, 4, 16, 8)


GQA = {
    "gqa": att(lambda q, k, v: F.scaled_dot_product_attention(q, k, v, enable_gqa=True)),
    "sdpa": att(lambda q, k, v: F.scaled_dot_product_attention(q, rep(k), rep(v))),
    "eager": att(lambda q, k, v: F.softmax(q @ rep(k).transpose(-1, -2) * S, -1) @ rep(v)),
    "interleave": att(
        lambda q, k, v: (
            F.softmax(q @ k.repeat_interleave(2, 1).transpose(-1, -2) * S, -1)
            @ v.repeat_interleave(2, 1)
        )
    ),
    "five": att(
        lambda q, k, v: (
            F.softmax(q.view(2, 2, 2, 16, 8) @ k[:, :, None].transpose(-1, -2) * S, -1)
            @ v[:, :, None]
        ).reshape(2, 4, 16, 8)
    ),
}


def soft_cap(q, k, v):
    s = torch.tanh(q @ k.transpose(-1, -2) * S / 50.0) * 50.0
    return F.softmax(s, -1) @ v


def soft_cap_steps(q, k, v, m):
    s = q @ k.transpose(-1, -2) * S
    s = s / 50.0
    s = torch.tanh(s)
    s = s * 50.0
    return F.softmax(s + m, -1, dtype=torch.float32).to(q) @ v


SOFTCAP = {"eager": att(soft_cap)}
SOFTCAP_MASK = {"eager": att(soft_cap_steps)}


def swin(q, k, v, bias, m):
    # 4 windows of 2 images
    s = q @ k.transpose(-1, -2) * S + bias[None]
    s = s.view(2, 4, 4, 16, 16) + m[:, None][None]
    return F.softmax(s.view(8, 4, 16, 16), -1) @ v


def swin_hf(q, k, v, bias, m):
    s = q @ k.transpose(-1, -2) / 8**0.5
    s = s + bias[None]
    s = s.view(2, 4, 4, 16, 16) + m.unsqueeze(1).unsqueeze(0)
    return F.softmax(s.view(-1, 4, 16, 16), -1) @ v


SWIN_ARGS = (
    torch.randn(8, 4, 16, 8),
    torch.randn(8, 4, 16, 8),
    torch.randn(8, 4, 16, 8),
    torch.randn(4, 16, 16),
    torch.randn(4, 16, 16),
)
SWIN = {"view": att(swin), "hf": att(swin_hf)}
ALIBI_ARGS = (*QKV, torch.randn(1, 4, 1, 16))
ALIBI = {
    "sdpa": att(lambda q, k, v, m: F.scaled_dot_product_attention(q, k, v, attn_mask=m)),
    "eager": att(lambda q, k, v, m: F.softmax(q @ k.transpose(-1, -2) * S + m, -1) @ v),
    "baddbmm": att(
        lambda q, k, v, m: (
            F.softmax(
                torch.baddbmm(
                    m.expand(2, 4, 1, 16).reshape(8, 1, 16),
                    q.reshape(8, 16, 8),
                    k.reshape(8, 16, 8).transpose(1, 2),
                    alpha=S,
                ),
                -1,
            )
            @ v.reshape(8, 16, 8)
        ).view(2, 4, 16, 8)
    ),
}


def half(x):
    return torch.cat((-x[..., 4:], x[..., :4]), -1)


def half_chunk(x):
    a, b = x.chunk(2, -1)
    return torch.cat((-b, a), -1)


ROPE_ARGS = (torch.randn(Q), torch.randn(1, 1, 16, 8), torch.randn(1, 1, 16, 8))


def llama_half(x, cos, sin):
    # Meta/vLLM form: halves with tables of half the width
    c, s = cos[..., :4], sin[..., :4]
    a, b = x[..., :4], x[..., 4:]
    return torch.cat((a * c - b * s, b * c + a * s), -1)


ROPE = {
    "hf": Of(lambda x, c, s: x * c + half(x) * s),
    "chunk": Of(lambda x, c, s: (x * c) + (half_chunk(x) * s)),
}
ROPE_HALF_ARGS = (torch.randn(Q), torch.randn(1, 1, 16, 4), torch.randn(1, 1, 16, 4))


def halves(x, c, s):
    a, b = x.chunk(2, -1)
    return torch.cat((a * c - b * s, b * c + a * s), -1)


def halves2(x, c, s):
    a, b = x[..., :4], x[..., 4:]
    return torch.cat((a * c - b * s, a * s + b * c), -1)


def pairs(x, c, s):
    a, b = x[..., ::2], x[..., 1::2]
    return torch.stack((a * c - b * s, b * c + a * s), -1).flatten(-2)


def pairs_view(x, c, s):
    y = x.view(2, 4, 16, 4, 2)
    a, b = y[..., 0], y[..., 1]
    return torch.stack((a * c - b * s, b * c + a * s), -1).view(2, 4, 16, 8)


ROPE_HALF = {"chunk": Of(halves), "slice": Of(halves2)}
ROPE_PAIRS = {"step": Of(pairs), "view": Of(pairs_view)}


def gptj(x, cos, sin):
    a, b = x[..., ::2], x[..., 1::2]
    y = torch.stack((-b, a), -1).flatten(-2)
    return x * cos + y * sin


ROPE_GPTJ = {"gptj": Of(gptj)}
BIAS = {
    "add": Of(lambda x, b: F.gelu(x + b), (32,)),
}
SKIP = {"add": Of(lambda x, y, w, b: F.layer_norm(x + y, (32,), w, b), (32,), (32,))}

MEANINGS = {
    "layer_norm": (LAYER, X3),
    "rms_norm": (RMS, X3),
    "rms_norm_half": (
        {
            "cast": rms("pow", True),
            "castmul": rms("mul", True),
        },
        (X3[0].half(),),
    ),
    "rms_norm_gemma": ({"gemma": rms("gemma")}, X3),
    "group_norm": (GROUP, X4),
    "instance_norm": (INSTANCE, X4),
    "softmax": (SOFTMAX, X3),
    "gelu": (GELU, X3),
    "gelu_tanh": (GELU_TANH, X3),
    "quick_gelu": (QUICK, X3),
    "silu": (SILU, X3),
    "mish": (MISH, X3),
    "hardswish": (HARDSWISH, X3),
    "hardsigmoid": (HARDSIGMOID, X3),
    "swiglu": (SWIGLU, X3),
    "swiglu_fused": (SWIGLU_FUSED, X3),
    "attention": (ATTENTION, QKV),
    "attention_last": (ATTENTION_LAST, QKV_LAST),
    "mask_add": (MASK_ADD, MASKED_ARGS),
    "mask_bool": (MASK_BOOL, BOOL_ARGS),
    "causal": (CAUSAL, QKV),
    "sliding": (SLIDING, QKV),
    "gqa": (GQA, GQA_ARGS),
    "softcap": (SOFTCAP, QKV),
    "softcap_mask": (SOFTCAP_MASK, MASKED_ARGS),
    "swin": (SWIN, SWIN_ARGS),
    "alibi": (ALIBI, ALIBI_ARGS),
    "rope": (ROPE, ROPE_ARGS),
    "rope_half": (ROPE_HALF, ROPE_HALF_ARGS),
    "rope_pairs": (ROPE_PAIRS, ROPE_HALF_ARGS),
    "rope_gptj": (ROPE_GPTJ, ROPE_ARGS),
    "bias_gelu": (BIAS, X3),
    "skip_norm": (SKIP, (X3[0], torch.randn(2, 16, 32))),
}
