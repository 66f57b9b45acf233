"""Many transformers architectures, tiny: parameters and FLOPs beside a real run on the CPU.

The oracle is the model itself with random weights under PyTorch's FlopCounterMode. Running this file
writes docs/model_types.md; with the argument `others` it adds what else transformers knows.
"""

import json
import os
import resource
import signal
import sys
import tempfile
import warnings
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from hf_zoo import (  # noqa: E402
    FAMILIES,
    MODEL_TYPES,
    NOT_IMPORTED,
    NOT_RUN,
    SAMPLE,
    SIZE_OF,
    small_config,
    tiny_config,
)
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
    """Of a scan, the counter sees the product of C with the states."""
    kinds = ("contraction", "attention")
    scans = (n for n in graph.nodes if n.op == "selective_scan")
    products = sum(2 * n.inputs[0].type.elements * n.inputs[2].type.shape[1] for n in scans)
    return products + sum(n.flops * n.count for n in graph.nodes if n.definition.kind in kinds)


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
        if kind not in NOT_IMPORTED and kind not in NOT_RUN
    ]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("model_type", cases())
def test_parameters_and_flops_equal_a_real_run(model_type, tmp_path):
    _, ours, expected = compare(model_type, tmp_path)
    assert ours == expected
    assert ours[1] > 0


PAGE = Path(__file__).parents[2] / "docs/model_types.md"
LIMIT_S = 240
"""CPU time for one model type."""
COUNTED_PARAMETERS = 300_000_000
"""Models up to this size are run on the CPU too."""
HEAD = """# Architectures of transformers

`hf:path/to/config.json` builds a model on the meta device from its config and imports it. This table was
made with transformers {version} by `python tests/importers/test_hf_model_types.py`: each model type with
the defaults of its config class shrunk (`tests/importers/hf_zoo.py`): everything ("tiny"), or the number of
layers and experts alone ("two layers") or nothing ("default") where smaller widths do not fit together.
"Equal" means that trainable parameters and FLOPs of contractions (forward) are those of the model run on the
CPU under PyTorch's FlopCounterMode.

The route is `torch.export`, or `run-time trace` where that cannot follow the model: then the model is run
once on meta tensors, whole numbers computed for real, and its operators are written down.
"""


def row(kind, folder):
    """One line of the table, from an import and a real run."""
    reason = NOT_IMPORTED.get(kind)
    for size in [SIZE_OF[kind]] if kind in SIZE_OF else ["tiny", "two layers", "default"]:
        if kind in NOT_IMPORTED:
            break
        path = Path(folder) / f"{kind}.json"
        try:
            path.write_text(json.dumps(small_config(kind, size)))
            sizes = options_of(path)
            loaded = importers.load(f"hf:{path}", **sizes)
        except TimeoutError:
            reason = reason or f"takes more than {LIMIT_S} s"
            break
        except Exception as error:  # a model may fail in any way; that is what the table tells
            reason = reason or " ".join(str(error).split()).replace("|", "/")[:160]
            continue
        graph = loaded.graph
        ours = (sum(v.type.elements for v in graph.parameters), contraction_flops(graph))
        route = "run-time trace" if "run-time" in loaded.importer else "torch.export"
        return f"| {kind} | yes | {route} | {size} | {beside_a_run(path, sizes, ours)} |"
    return f"| {kind} | no | | | {reason} |"


def beside_a_run(path, sizes, ours):
    """What a real run says of the imported parameters and FLOPs."""
    if ours[0] > COUNTED_PARAMETERS:
        return "not run: too large"
    try:
        expected = run_on_cpu(path, sizes)
    except Exception as error:  # likewise
        return f"not run: {' '.join(str(error).split()).replace('|', '/')[:100]}"
    if ours == expected:
        return "equal"
    return f"{ours[0]} of {expected[0]} parameters, {ours[1]} of {expected[1]} FLOPs"


def row_in_a_process(kind):
    """The row, measured in a process of its own, which may run out of time or memory."""
    receive, send = os.pipe()
    child = os.fork()
    if not child:
        signal.signal(signal.SIGXCPU, out_of_time)
        resource.setrlimit(resource.RLIMIT_CPU, (LIMIT_S, LIMIT_S + 30))
        with tempfile.TemporaryDirectory() as folder:
            os.write(send, row(kind, folder).encode())
        os._exit(0)
    os.close(send)
    with os.fdopen(receive) as told:
        text = told.read()
    os.waitpid(child, 0)
    return text or f"| {kind} | no | | | takes more than {LIMIT_S} s |"


def out_of_time(*_):
    raise TimeoutError


def write_page(kinds):
    """Measures `kinds` and writes their rows; the rows of others stay as they are."""
    old = PAGE.read_text().splitlines() if PAGE.exists() else []
    rows = {line.split("|")[1].strip(): line for line in old if line.startswith("| ")}
    torch.set_num_threads(1)
    # What every process needs is loaded once.
    torch.export.export(torch.nn.Linear(2, 2), (torch.zeros(1, 2),))
    for kind in kinds:
        rows[kind] = row_in_a_process(kind)
        sys.stderr.write(f"{rows[kind]}\n")
        PAGE.parent.mkdir(exist_ok=True)
        PAGE.write_text(page(rows))


def other_types():
    """Model types that transformers knows beside those of the list."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    return [kind for kind in CONFIG_MAPPING_NAMES if kind not in MODEL_TYPES]


def page(rows):
    """The page's text."""
    text = HEAD.format(version=transformers.__version__)
    others = [kind for kind in other_types() if kind in rows]
    families = FAMILIES | ({"Others, as far as they were measured": others} if others else {})
    done = [rows[kind] for members in families.values() for kind in members if kind in rows]
    text += f"\n{sum('| yes |' in r for r in done)} of {len(done)} import.\n"
    for family, members in families.items():
        text += f"\n## {family}\n\n| model type | imports | route | size | beside a real run |\n"
        text += "|---|---|---|---|---|\n"
        text += "".join(f"{rows[kind]}\n" for kind in members if kind in rows)
    return text


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    named = sys.argv[1:] or MODEL_TYPES
    write_page(other_types() if named == ["others"] else named)
