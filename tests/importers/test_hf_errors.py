"""What the Hugging Face importer says to configs and sizes that cannot be."""

import json

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

import importers
from graph_ir.errors import DimensionError, ModelFileError, OpboundError


def fails(error, match, *args, **kwargs):
    with pytest.raises(error, match=match) as caught:
        importers.load(*args, **kwargs)
    assert "\n" not in str(caught.value)


def test_name_that_does_not_exist():
    fails(ModelFileError, "did you mean 'llama-2-7b'", "hf:llama-2-7")


def test_repository_that_is_not_here():
    fails(ModelFileError, "opbound downloads nothing", "hf:meta-llama/Llama-3.1-8B")


def test_code_of_a_repository_is_never_run(tmp_path):
    """`auto_map` names Python files that lie beside the config; loading them would run them."""
    (tmp_path / "modeling_own.py").write_text(
        f"import pathlib\npathlib.Path({str(tmp_path / 'ran')!r}).touch()\n"
    )
    path = tmp_path / "config.json"
    own = {"auto_map": {"AutoModelForCausalLM": "modeling_own.Own"}, "trust_remote_code": True}
    path.write_text(json.dumps({"model_type": "own"} | own))
    fails(OpboundError, "never runs", f"hf:{path}")
    tiny = {"model_type": "gpt2", "n_embd": 16, "n_layer": 1, "n_head": 2, "vocab_size": 20}
    path.write_text(json.dumps(tiny | own))
    assert importers.load(f"hf:{path}", sequence=8).graph.nodes
    path.write_text(json.dumps(tiny | {"_attn_implementation": "someone/kernels"}))
    fails(OpboundError, "opbound knows sdpa and eager", f"hf:{path}", sequence=8)
    assert not (tmp_path / "ran").exists()


def test_file_that_is_no_json(tmp_path):
    path = tmp_path / "config.json"
    path.write_text("{not json")
    fails(ModelFileError, "cannot be read as JSON", f"hf:{path}")
    path.write_text("[1]")
    fails(ModelFileError, "has no key 'model_type'", f"hf:{path}")


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ({"model_type": "lama"}, "did you mean 'llama'"),
        ({"model_type": "llama", "hidden_size": "wide"}, "cannot build"),
        ({"model_type": "llama", "num_attention_heads": 0}, "cannot build"),
        (
            {"model_type": "seggpt", "architectures": ["SegGptModel"]},
            "no input builder",
        ),
    ],
)
def test_config_that_transformers_refuses(tmp_path, content, match):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(content))
    fails(OpboundError, match, f"hf:{path}")


def test_more_tokens_than_learned_positions():
    fails(DimensionError, "1024 learned positions", "hf:gpt2", sequence=1025)
    fails(DimensionError, "512 learned positions", "hf:bert-large", sequence=513)
    fails(DimensionError, "1024 learned positions", "hf:gpt2", mode="decode", past_tokens=1024)


def test_models_that_do_not_generate():
    fails(OpboundError, "generates no tokens", "hf:vit-large", mode="decode")
    fails(OpboundError, "generates no tokens", "hf:bert-large", mode="prefill")


def test_images_have_no_sequence():
    fails(DimensionError, "no sequence dim", "hf:vit-large", sequence=10)


def test_unknown_dtype():
    fails(OpboundError, "unknown dtype", "hf:gpt2", dtype="bf17")


def test_a_folder_with_a_config(tmp_path):
    (tmp_path / "tiny").mkdir()
    content = {"model_type": "gpt2", "n_embd": 16, "n_layer": 1, "n_head": 2, "vocab_size": 20}
    (tmp_path / "tiny" / "config.json").write_text(json.dumps(content))
    loaded = importers.load(f"hf:{tmp_path / 'tiny'}", sequence=8, dtype="fp8")
    assert loaded.name == "tiny"
    assert {v.type.dtype.label for v in loaded.graph.parameters} == {"float8_e4m3"}
    assert len(loaded.sha256) == 64
