"""One model, two frontends: exported to ONNX and imported from PyTorch, it has the same contractions.

Compared are parameters, FLOPs, and the bytes that the contractions and attention touch.
"""

import json
from collections import Counter

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytest.importorskip("onnxscript")

from torch import nn  # noqa: E402

import importers  # noqa: E402
from importers.huggingface import read_config  # noqa: E402


class Classifier(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 7, stride=2, padding=3, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.pool = nn.MaxPool2d(3, 2, 1)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.pointwise = nn.Conv2d(8, 16, 1)
        self.head = nn.Linear(16, 10)

    def forward(self, x):
        x = self.pool(torch.relu(self.norm(self.stem(x))))
        x = torch.relu(self.pointwise(self.depthwise(x)))
        return self.head(x.mean((2, 3)))


class Attention(nn.Module):
    """A pre-norm block with decomposed attention."""

    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(32)
        self.qkv = nn.Linear(32, 96)
        self.out = nn.Linear(32, 32)
        self.up = nn.Linear(32, 64)
        self.down = nn.Linear(64, 32)

    def forward(self, x):
        b, s, _ = x.shape
        q, k, v = self.qkv(self.norm(x)).reshape(b, s, 3, 4, 8).permute(2, 0, 3, 1, 4).unbind(0)
        scores = (q @ k.transpose(-1, -2) * 8**-0.5).softmax(-1)
        x = x + self.out((scores @ v).transpose(1, 2).reshape(b, s, 32))
        return x + self.down(nn.functional.gelu(self.up(self.norm(x))))


def contractions(graph):
    """How many contractions there are of each FLOPs and bytes."""
    found = Counter()
    for node in graph.nodes:
        if node.definition.kind in ("contraction", "attention"):
            operands = node.inputs[:3] if node.op == "attention" else node.inputs
            read = sum(v.type.bytes for v in operands)
            found[node.flops, read + node.outputs[0].type.bytes] += node.count
    return found


def parameters(graph):
    return sum(v.type.elements * v.count for v in graph.parameters)


def exported(module, args, path, kwargs=None):
    program = torch.onnx.export(
        module, args, kwargs=kwargs, dynamo=True, optimize=False, verbose=False
    )
    program.save(path)
    return importers.load(path).graph


@pytest.mark.parametrize(
    ("module", "inputs"),
    [(Classifier(), (torch.randn(2, 3, 32, 32),)), (Attention(), (torch.randn(2, 12, 32),))],
)
@pytest.mark.filterwarnings("ignore")
def test_modules(module, inputs, tmp_path):
    ours = importers.load(module.eval(), example_inputs=inputs).graph
    theirs = exported(module.eval(), inputs, tmp_path / "model.onnx")
    assert contractions(ours) == contractions(theirs)
    running = sum(b.numel() for n, b in module.named_buffers() if "running" in n)
    assert parameters(ours) == sum(p.numel() for p in module.parameters())
    # An ONNX file does not say which weights are trained: batch norm's running statistics look alike.
    assert parameters(theirs) - parameters(ours) in (0, running)


@pytest.mark.filterwarnings("ignore")
def test_gpt2(tmp_path):
    """With decomposed attention; transformers' GPT-2 is exported with a 4-D mask and without a cache."""
    content = dict(read_config("megatron-22b").content)
    content |= {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "vocab_size": 100}
    path = tmp_path / "tiny.json"
    path.write_text(json.dumps(content))
    ours = importers.load(f"hf:{path}", batch=2, sequence=16, dtype="float32").graph
    settings = {k: v for k, v in content.items() if not k.startswith("_") and k != "model_type"}
    model = transformers.GPT2LMHeadModel._from_config(
        transformers.AutoConfig.for_model("gpt2", **settings), attn_implementation="eager"
    )
    given = {
        "input_ids": torch.zeros(2, 16, dtype=torch.long),
        "attention_mask": torch.zeros(1, 1, 16, 16),
        "use_cache": False,
    }
    theirs = exported(model.eval(), (), tmp_path / "gpt2.onnx", given)
    assert contractions(ours) == contractions(theirs)
    assert parameters(ours) == parameters(theirs) == sum(p.numel() for p in model.parameters())
