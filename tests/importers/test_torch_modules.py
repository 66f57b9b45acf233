"""Modules of many kinds: the graph computes what the module computes, with the FLOPs that torch counts."""

from collections import Counter

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402
from torch.utils.flop_counter import FlopCounterMode  # noqa: E402

import importers  # noqa: E402
from graph_ir.evaluate import run_graph  # noqa: E402
from graph_ir.training import training_graph  # noqa: E402


class Function(nn.Module):
    """A module of one function, with a weight so that it can be trained."""

    def __init__(self, function, *shape):
        super().__init__()
        self.function = function
        self.weight = nn.Parameter(torch.randn(*shape)) if shape else None

    def forward(self, *args):
        return self.function(*args) if self.weight is None else self.function(self.weight, *args)


class Bottleneck(nn.Module):
    def __init__(self, channels, inner, groups=1):
        super().__init__()
        self.first = nn.Conv2d(channels, inner, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(inner)
        self.second = nn.Conv2d(inner, inner, 3, padding=1, groups=groups)
        self.norm2 = nn.BatchNorm2d(inner)
        self.third = nn.Conv2d(inner, channels, 1, bias=False)

    def forward(self, x):
        y = F.relu(self.norm1(self.first(x)), inplace=True)
        y = self.norm2(self.second(y)).relu()
        y = self.third(y)
        y += x
        return F.relu(y)


class ResNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 7, stride=2, padding=3)
        self.pool = nn.MaxPool2d(3, stride=2, padding=1)
        self.blocks = nn.Sequential(Bottleneck(8, 4), Bottleneck(8, 4))
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        x = self.blocks(self.pool(self.stem(x)))
        return self.head(F.adaptive_avg_pool2d(x, 1).flatten(1))


class Rotary(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv = nn.Linear(16, 48)

    def forward(self, x):
        b, s, _ = x.shape
        q, k, v = self.qkv(x).view(b, s, 3, 2, 8).permute(2, 0, 3, 1, 4).unbind(0)
        angle = torch.arange(s, device=x.device)[:, None] * torch.ones(8, device=x.device)
        q = q * angle.cos() + torch.cat([-q[..., 4:], q[..., :4]], -1) * angle.sin()
        k = k * angle.cos() + torch.roll(k, 4, -1) * angle.sin()
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return out.transpose(1, 2).reshape(b, s, 16)


class First(nn.Module):
    """The first result of a recurrent layer."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return self.layer(x)[0]


class Writes(nn.Module):
    """In-place writes through views."""

    def forward(self, x):
        y = torch.zeros_like(x)
        y[:, 1:] = x[:, :-1]
        y[:, 0] = 3.0
        z = x.clone()
        z[..., 1].mul_(2.0)
        z.add_(y)
        return z.masked_fill(z > 1.0, 0.5)


def randn(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


CASES = {
    "resnet": (ResNet(), (randn(2, 3, 32, 32),)),
    # Not compared with the counter, which takes a grouped convolution's weight gradient for an ungrouped one.
    "grouped": (Bottleneck(8, 4, groups=2), (randn(2, 8, 6, 6),)),
    "rotary": (Rotary(), (randn(2, 6, 16),)),
    "writes": (Writes(), (randn(3, 4),)),
    "encoder_layer": (
        nn.TransformerEncoderLayer(16, 4, 32, 0.0, batch_first=True),
        (randn(2, 5, 16),),
    ),
    "decoder_layer": (
        nn.TransformerDecoderLayer(16, 4, 32, 0.0, batch_first=True, activation="gelu"),
        (randn(2, 5, 16), randn(2, 7, 16)),
    ),
    "multihead": (nn.MultiheadAttention(16, 4, batch_first=True), (randn(2, 5, 16),) * 3),
    "conv1d": (nn.Conv1d(4, 6, 3, padding="same", dilation=2), (randn(2, 4, 9),)),
    "conv3d": (nn.Conv3d(2, 4, 3, stride=2, padding=1), (randn(1, 2, 6, 6, 6),)),
    "conv_transpose": (nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1), (randn(1, 4, 5, 5),)),
    "group_norm": (nn.GroupNorm(2, 4), (randn(2, 4, 3, 3),)),
    "instance_norm": (nn.InstanceNorm2d(4, affine=True), (randn(2, 4, 3, 3),)),
    "rms_norm": (nn.RMSNorm(8), (randn(2, 3, 8),)),
    "layer_norm": (nn.LayerNorm((3, 8), bias=False), (randn(2, 3, 8),)),
    "batch_norm_plain": (nn.BatchNorm1d(4, affine=False), (randn(6, 4),)),
    "avg_pool": (nn.AvgPool2d(2, count_include_pad=False, padding=1), (randn(1, 2, 6, 6),)),
    "adaptive": (nn.AdaptiveAvgPool2d((2, 3)), (randn(1, 2, 6, 6),)),
    "embedding": (nn.Embedding(10, 4), (torch.tensor([[1, 2], [3, 9]]),)),
    "bilinear": (
        Function(lambda w, a, b: torch.einsum("bi,oij,bj->bo", a, w, b), 3, 4, 5),
        (randn(2, 4), randn(2, 5)),
    ),
    "ellipsis": (
        Function(lambda w, x: torch.einsum("...i,ij->...j", x, w), 4, 6),
        (randn(2, 3, 4),),
    ),
    "vectors": (Function(lambda w, x: x @ w + torch.dot(w, w), 4), (randn(3, 4),)),
    "batched": (
        Function(lambda w, x: torch.baddbmm(x, w, x, alpha=0.5, beta=2.0), 3, 4, 4),
        (randn(3, 4, 4),),
    ),
    "activations": (
        nn.Sequential(
            nn.SiLU(),
            nn.GELU("tanh"),
            nn.Hardswish(),
            nn.Softplus(),
            nn.Mish(),
            nn.ReLU6(),
            nn.Tanh(),
        ),
        (randn(3, 4),),
    ),
    "arithmetic": (
        Function(
            lambda w, x: (
                (1 - x * w).abs().sqrt() / (x.square() + 1) - torch.rsub(x, w, alpha=2) ** 3
            ),
            4,
        ),
        (randn(3, 4),),
    ),
    "choices": (
        Function(
            lambda x: (
                torch.where(x > 0, x, -1.0).clamp(-0.5, 0.7)
                + torch.maximum(x, x.mean())
                + x.clamp_min(0.1)
            )
        ),
        (randn(3, 4),),
    ),
    "reductions": (
        Function(
            lambda x: (
                x.var(1)
                + x.std(1, unbiased=False)
                + x.amax(1)
                + x.sum((0, 1)).mean()
                + x.max(1).values
            )
        ),
        (randn(3, 4),),
    ),
    "shapes": (
        Function(
            lambda x: (
                torch.stack([x.repeat(2, 1), x.repeat_interleave(2, 0)], 1)
                .movedim(1, -1)
                .flatten(1)
                .tril()
            )
        ),
        (randn(3, 4),),
    ),
    "lookups": (
        Function(
            lambda x: (
                x[:, torch.tensor([2, 0])]
                + x.index_select(1, torch.tensor([1, 1]))
                + x.gather(1, torch.zeros(3, 2, dtype=torch.long))
            )
        ),
        (randn(3, 4),),
    ),
    "padding": (Function(lambda x: F.pad(x, (1, 2, -1, 0), value=0.5)), (randn(3, 4),)),
    "sorting": (
        Function(
            lambda x: (
                x.topk(2, 1).values + x.sort(1, descending=True).values[:, :2] + x.cumsum(1)[:, :2]
            )
        ),
        (randn(3, 4),),
    ),
    "masked_attention": (
        Function(
            lambda x: F.scaled_dot_product_attention(
                x,
                x,
                x,
                attn_mask=torch.ones(5, 5, device=x.device, dtype=torch.bool).tril(),
                scale=0.3,
            )
        ),
        (randn(2, 3, 5, 4),),
    ),
    "flat_attention": (
        Function(lambda x: F.scaled_dot_product_attention(x, x, x, is_causal=True)),
        (randn(3, 5, 4),),
    ),
    "triangular": (
        Function(lambda a, b: torch.linalg.solve_triangular(a, b, upper=False)),
        (torch.eye(4).repeat(2, 1, 1) * 3 + randn(2, 4, 4) * 0.1, randn(2, 4, 3)),
    ),
    "strides_of_a_permuted": (
        Function(lambda x: x.transpose(0, 1).as_strided((2, 3), (1, 2), 1)),
        (randn(4, 3),),
    ),
    # torch defines these by other operators, which is how they are imported.
    "lstm": (First(nn.LSTM(4, 5, batch_first=True)), (randn(2, 3, 4),)),
    "gru": (First(nn.GRU(4, 5, num_layers=2, bidirectional=True)), (randn(2, 3, 4),)),
    "gated": (Function(F.glu), (randn(2, 4),)),
    "pixel_shuffle": (nn.PixelShuffle(2), (randn(1, 8, 2, 3),)),
    "cosine": (Function(F.cosine_similarity), (randn(3, 4), randn(4, 4)[:3])),
    "upsample": (nn.Upsample(scale_factor=2, mode="bilinear"), (randn(1, 2, 3, 3),)),
    "reflect": (nn.ReflectionPad2d((1, 2, 0, 1)), (randn(1, 2, 3, 3),)),
    "local_norm": (nn.LocalResponseNorm(3), (randn(1, 4, 3, 3),)),
    "image_loss": (
        Function(lambda x: F.cross_entropy(x, torch.zeros(2, 5, dtype=torch.long))),
        (randn(2, 3, 5),),
    ),
    "soft_loss": (Function(lambda x: F.cross_entropy(x, torch.ones(2, 3) / 3)), (randn(2, 3),)),
    "smoothed_loss": (
        Function(lambda x: F.cross_entropy(x, torch.tensor([1, 0]), label_smoothing=0.1)),
        (randn(2, 3),),
    ),
    "binary_loss": (
        Function(lambda x: F.binary_cross_entropy_with_logits(x, torch.ones(2, 3))),
        (randn(2, 3),),
    ),
    "slopes": (
        Function(lambda x: F.leaky_relu(x, 0.2) + F.elu(x) + F.logsigmoid(x) + F.hardtanh(x)),
        (randn(2, 3),),
    ),
    "losses": (
        Function(
            lambda w, x: F.cross_entropy(x @ w, torch.tensor([1, 2, 0])) + F.mse_loss(x, x * 2),
            4,
            5,
        ),
        (randn(3, 4),),
    ),
}


@pytest.fixture(params=sorted(CASES))
def case(request):
    module, inputs = CASES[request.param]
    torch.manual_seed(1)
    return module.eval(), inputs


def test_graph_computes_what_the_module_computes(case):
    module, inputs = case
    graph = importers.load(module, example_inputs=inputs).graph
    tensors = dict(module.named_parameters(remove_duplicate=False)) | dict(module.named_buffers())
    given = iter(inputs)
    values = {}
    for value in graph.inputs:
        if value.kind in ("parameter", "buffer"):
            values[value] = tensors[value.name].detach().numpy()
        elif value.kind == "constant":
            values[value] = np.asarray(value.data)
        else:
            values[value] = next(given).numpy()
    found = run_graph(graph, values)[graph.outputs[0]]
    expected = module(*inputs)
    expected = expected[0] if isinstance(expected, tuple) else expected
    np.testing.assert_allclose(found, expected.detach().numpy(), rtol=1e-3, atol=1e-5)


def products(graph, phase):
    return sum(
        n.flops
        for n in graph.nodes
        if n.phase == phase and n.definition.kind in ("contraction", "attention")
    )


@pytest.mark.parametrize(
    "name", ["resnet", "rotary", "encoder_layer", "decoder_layer", "conv_transpose"]
)
def test_training_flops_equal_the_counter(name):
    """With the math backend, whose backward attention has one product less than the fused one."""
    module, inputs = CASES[name]
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        module.train()
        with FlopCounterMode(display=False) as forward:
            result = module(*inputs)
        with FlopCounterMode(display=False) as backward:
            result.sum().backward()
    graph = training_graph(importers.load(module, example_inputs=inputs, mode="training").graph)
    again = sum(n.flops // 2 for n in graph.nodes if n.op == "attention")
    assert products(graph, "forward") == forward.get_total_flops()
    assert products(graph, "backward") - again == backward.get_total_flops()


def test_the_users_module_is_left_alone():
    module, inputs = CASES["resnet"]
    module.train()
    before = {k: v.clone() for k, v in module.state_dict().items()}
    importers.load(module, example_inputs=inputs)
    assert module.training
    assert all(p.device.type == "cpu" for p in module.parameters())
    assert all(torch.equal(v, before[k]) for k, v in module.state_dict().items())


def test_copies_and_views_follow_the_strides():
    """Heads back to one row is free after fused attention, and a copy after a plain product."""
    module, inputs = CASES["rotary"]
    graph = importers.load(module, example_inputs=inputs).graph
    kinds = Counter((n.op, n.definition.is_view(n)) for n in graph.nodes)
    assert kinds["reshape", False] == 0

    def decomposed(x):
        scores = (x @ x.transpose(-1, -2)).softmax(-1)
        return (scores @ x).transpose(1, 2).reshape(2, 5, 12)

    graph = importers.load(Function(decomposed), example_inputs=(randn(2, 3, 5, 4),)).graph
    kinds = Counter((n.op, n.definition.is_view(n)) for n in graph.nodes)
    assert kinds["reshape", False] == 1


def test_tied_weights_are_one_parameter():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = nn.Embedding(10, 4)
            self.head = nn.Linear(4, 10, bias=False)
            self.head.weight = self.embedding.weight

        def forward(self, ids):
            return self.head(self.embedding(ids))

    graph = importers.load(Tied(), example_inputs=(torch.tensor([[1, 2]]),)).graph
    assert [v.type.elements for v in graph.parameters] == [40]


def test_fused_attention_backward_counts_as_torch_counts_it():
    """Five products: torch's own formula for the fused backward kernel."""
    from torch.utils.flop_counter import sdpa_backward_flop_count, sdpa_flop_count

    class Attend(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(8))

        def forward(self, q, k, v):
            return F.scaled_dot_product_attention(q * self.scale, k * self.scale, v * self.scale)

    query, key = (2, 3, 5, 8), (2, 3, 7, 8)
    inputs = (randn(*query), randn(*key), randn(*key))
    graph = training_graph(importers.load(Attend(), example_inputs=inputs, mode="training").graph)
    assert products(graph, "forward") == sdpa_flop_count(query, key, key)
    assert products(graph, "backward") == sdpa_backward_flop_count(query, query, key, key)
