"""State-space models: the scan is one operator, whatever the number of tokens."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

sys.path.insert(0, str(Path(__file__).parent))

from hf_zoo import tiny_config  # noqa: E402

import importers  # noqa: E402
from graph_ir.evaluate import run_graph  # noqa: E402
from importers.huggingface import build_model, read_config  # noqa: E402


@pytest.mark.filterwarnings("ignore")
def test_graph_computes_what_mamba_computes(tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(tiny_config("mamba")))
    graph = importers.load(f"hf:{path}", batch=2, sequence=7, dtype="float32").graph
    assert [n.op for n in graph.nodes].count("selective_scan") == 2
    meta = build_model(read_config(str(path)), "float32")
    torch.manual_seed(0)
    model = type(meta)._from_config(meta.config, dtype=torch.float32).eval()
    ids = torch.randint(1, 90, (2, 7))
    with torch.no_grad():
        expected = model(input_ids=ids, use_cache=False).logits.numpy()
    own = dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers())
    given = {
        v: v.data
        if v.kind == "constant"
        else ids.numpy()
        if v.kind == "input"
        else own[v.name].detach().numpy()
        for v in graph.inputs
    }
    found = run_graph(graph, given)[graph.outputs[0]]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore")
def test_more_tokens_make_no_more_nodes(tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(tiny_config("mamba")))
    few, many = (importers.load(f"hf:{path}", sequence=tokens).graph for tokens in (64, 4096))
    assert len(few.nodes) == len(many.nodes)
