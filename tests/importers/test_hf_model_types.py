"""Many transformers architectures, tiny: parameters and FLOPs beside a real run on the CPU.

The oracle is the model itself with random weights under PyTorch's FlopCounterMode. Running this file
(`python tests/importers/test_hf_model_types.py`) writes docs/model_types.md.
"""

import json
import sys
import tempfile
import warnings
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from hf_zoo import FAMILIES, MODEL_TYPES, NOT_IMPORTED, SAMPLE, UNCOUNTED, tiny_config  # noqa: E402
from torch.nn.attention import SDPBackend, sdpa_kernel  # noqa: E402
from torch.utils.flop_counter import FlopCounterMode  # noqa: E402

import importers  # noqa: E402
from importers.hf_inputs import traceable  # noqa: E402
from importers.huggingface import build_model, read_config  # noqa: E402
from importers.imported_model import ImportOptions  # noqa: E402

BATCH, SEQUENCE = 2, 24


def write_config(model_type, folder):
    path = Path(folder) / f"{model_type}.json"
    path.write_text(json.dumps(tiny_config(model_type)))
    return path


def options_of(path):
    """Batch and sequence; models without text take no sequence."""
    model = build_model(read_config(str(path)))
    names = importers.hf_modalities.parameters_of(model)
    text = "input_ids" in names or "decoder_input_ids" in names
    return {"batch": BATCH, "sequence": SEQUENCE if text else None}


def grouped_flops(x, weights, *_, **__):
    """The counter has no formula for grouped products: every row meets one expert's matrix."""
    return 2 * x[0] * weights[1] * weights[2]


def on_cpu(value):
    """Random numbers for floats, contents or small numbers for whole ones."""
    if not isinstance(value, torch.Tensor):
        return value
    if value.is_floating_point():
        # Some models take positions as floats: not negative, and less than one.
        return torch.rand(value.shape)
    return torch.ones(value.shape, dtype=value.dtype) if value.is_meta else value


def run_on_cpu(path, sizes):
    """Parameters and FLOPs of a real run of transformers' own model, in float32."""
    meta = build_model(read_config(str(path)), "float32")
    case = traceable(meta, ImportOptions(**sizes))
    kwargs = {k: on_cpu(v) for k, v in case.kwargs.items() if k != "attention_mask"}
    torch.manual_seed(0)
    kind = meta.config._attn_implementation
    kind = "sdpa" if kind == "opbound_sdpa" else kind
    model = (
        type(meta)._from_config(meta.config, attn_implementation=kind, dtype=torch.float32).eval()
    )
    # Frozen ones (tables of sines) are buffers of the graph.
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    model.requires_grad_(False)
    formulas = {torch.ops.aten._grouped_mm: grouped_flops}
    counter = FlopCounterMode(display=False, custom_mapping=formulas)
    # The counter does not look into oneDNN's recurrent layers.
    plain = torch.backends.mkldnn.flags(enabled=False)
    with plain, sdpa_kernel(SDPBackend.MATH), torch.no_grad(), counter:
        model(**kwargs)
    return trained, counter.get_total_flops()


def contraction_flops(graph):
    return sum(
        n.flops * n.count for n in graph.nodes if n.definition.kind in ("contraction", "attention")
    )


def compare(model_type, folder):
    """The imported model with what it and the real run count: (model, (parameters, FLOPs) twice)."""
    path = write_config(model_type, folder)
    sizes = options_of(path)
    loaded = importers.load(f"hf:{path}", **sizes)
    graph = loaded.graph
    ours = (sum(v.type.elements for v in graph.parameters), contraction_flops(graph))
    return loaded, ours, run_on_cpu(path, sizes)


def cases():
    return [
        pytest.param(kind, marks=() if kind in SAMPLE else pytest.mark.slow)
        for kind in MODEL_TYPES
        if kind not in NOT_IMPORTED and kind not in UNCOUNTED
    ]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("model_type", cases())
def test_parameters_and_flops_equal_a_real_run(model_type, tmp_path):
    _, ours, expected = compare(model_type, tmp_path)
    assert ours == expected
    assert ours[1] > 0


PAGE = Path(__file__).parents[2] / "docs/model_types.md"
HEAD = """# Architectures of transformers

`hf:path/to/config.json` builds a model on the meta device from its config and imports it. This table was
made with transformers {version} by `python tests/importers/test_hf_model_types.py`: each model type with
the defaults of its config class shrunk to a tiny size (`tests/importers/hf_zoo.py`). "Equal" means that
trainable parameters and FLOPs of contractions (forward) are those of the model run on the CPU under
PyTorch's FlopCounterMode.

The route is `torch.export`, or `run-time trace` where that cannot follow the model: then the model is run
once on meta tensors, whole numbers computed for real, and its operators are written down.
"""


def row(kind, folder):
    """One line of the table, from an import and a real run."""
    if kind in NOT_IMPORTED:
        return f"| {kind} | no | | {NOT_IMPORTED[kind]} |"
    loaded, ours, expected = compare(kind, folder)
    route = "run-time trace" if "run-time" in loaded.importer else "torch.export"
    checked = "equal" if ours == expected else UNCOUNTED.get(kind, "differs")
    return f"| {kind} | yes | {route} | {checked} |"


def write_page(kinds):
    """Measures `kinds` and writes their rows; the rows of others stay as they are."""
    old = PAGE.read_text().splitlines() if PAGE.exists() else []
    rows = {line.split("|")[1].strip(): line for line in old if line.startswith("| ")}
    with tempfile.TemporaryDirectory() as folder:
        for kind in kinds:
            try:
                rows[kind] = row(kind, folder)
            except Exception as error:  # a model may fail in any way; the others are still measured
                text = " ".join(str(error).split())[:200]
                sys.stderr.write(f"{kind}: {type(error).__name__}: {text}\n")
            PAGE.parent.mkdir(exist_ok=True)
            PAGE.write_text(page(rows))


def page(rows):
    """The page's text."""
    text = HEAD.format(version=transformers.__version__)
    done = [rows[kind] for kind in MODEL_TYPES if kind in rows]
    text += f"\n{sum('| yes |' in r for r in done)} of {len(done)} import.\n"
    for family, members in FAMILIES.items():
        text += f"\n## {family}\n\n| model type | imports | route | beside a real run |\n"
        text += "|---|---|---|---|\n"
        text += "".join(f"{rows[kind]}\n" for kind in members if kind in rows)
    return text


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    write_page(sys.argv[1:] or MODEL_TYPES)
