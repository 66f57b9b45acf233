"""Diffusion models from diffusers' configs, against torch's own FLOP counter and published sizes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

pytest.importorskip("diffusers", reason="needs the extra 'diffusion'", exc_type=ImportError)

import importers
from graph_ir.errors import OpboundError
from graph_ir.graph import Graph
from importers.diffusion import config_names
from importers.diffusion_inputs import inputs_of
from importers.imported_model import ImportOptions

SMALL: dict[str, dict[str, Any]] = {
    "UNet2DConditionModel": {
        "sample_size": 16,
        "block_out_channels": [32, 64],
        "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
        "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
        "layers_per_block": 1,
        "cross_attention_dim": 48,
        "attention_head_dim": 4,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 80,
    },
    "UNet2DModel": {
        "sample_size": 16,
        "block_out_channels": [32, 64],
        "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
        "up_block_types": ["AttnUpBlock2D", "UpBlock2D"],
        "layers_per_block": 1,
    },
    "DiTTransformer2DModel": {
        "sample_size": 8,
        "num_layers": 2,
        "num_attention_heads": 2,
        "attention_head_dim": 8,
        "in_channels": 4,
        "out_channels": 8,
    },
    "PixArtTransformer2DModel": {
        "sample_size": 8,
        "num_layers": 2,
        "num_attention_heads": 2,
        "attention_head_dim": 8,
        "cross_attention_dim": 16,
        "caption_channels": 24,
    },
    "SD3Transformer2DModel": {
        "sample_size": 16,
        "num_layers": 2,
        "num_attention_heads": 2,
        "attention_head_dim": 8,
        "in_channels": 4,
        "out_channels": 4,
        "joint_attention_dim": 32,
        "caption_projection_dim": 16,
        "pooled_projection_dim": 24,
    },
    "FluxTransformer2DModel": {
        "in_channels": 16,
        "num_layers": 1,
        "num_single_layers": 2,
        "num_attention_heads": 2,
        "attention_head_dim": 16,
        "joint_attention_dim": 32,
        "pooled_projection_dim": 24,
        "guidance_embeds": True,
        "axes_dims_rope": [4, 6, 6],
    },
    "AutoencoderKL": {
        "sample_size": 32,
        "block_out_channels": [32, 64],
        "down_block_types": ["DownEncoderBlock2D"] * 2,
        "up_block_types": ["UpDecoderBlock2D"] * 2,
    },
}


def product_flops(graph: Graph) -> int:
    kinds = ("contraction", "attention")
    return sum(n.flops for n in graph.nodes if n.definition.kind in kinds)


def config(folder: Path, name: str) -> str:
    path = folder / "config.json"
    path.write_text(json.dumps({"_class_name": name, "_diffusers_version": "0.6.0", **SMALL[name]}))
    return f"diffusers:{path}"


@pytest.mark.parametrize("name", SMALL)
def test_flops_and_parameters_equal_torchs(tmp_path: Path, name: str) -> None:
    import diffusers

    # A DiT's positions are those of its square images.
    dims = {"height": 16, "width": 16 if "DiT" in name else 8}
    if "DiT" in name:
        dims = dict.fromkeys(dims, SMALL[name]["sample_size"])
    model = importers.load(config(tmp_path, name), batch=2, dims=dims, dtype="fp32")
    assert model.importer.startswith("diffusers")
    assert model.batch == 2
    with torch.device("meta"):
        module = getattr(diffusers, name).from_config(SMALL[name]).eval()
    kwargs, _ = inputs_of(module, ImportOptions(batch=2, dims=dims))
    given = torch.utils._pytree.tree_map(lambda t: t.to("meta"), kwargs)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        module(**given)
    assert product_flops(model.graph) == counter.get_total_flops() > 0
    assert sum(v.type.elements for v in model.graph.parameters) == sum(
        p.numel() for p in module.parameters()
    )


def test_a_larger_image_and_a_longer_prompt(tmp_path: Path) -> None:
    source = config(tmp_path, "UNet2DConditionModel")
    small, large = (
        importers.load(source, sequence=n, dims={"height": size, "width": size})
        for n, size in ((20, 16), (40, 32))
    )
    assert (small.sequence, large.sequence) == (20, 40)
    assert product_flops(large.graph) > 4 * product_flops(small.graph)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("{", "cannot be read as JSON"),
        ('{"model_type": "llama"}', "no key '_class_name'"),
        ('{"_class_name": "Unet2DModel"}', "did you mean 'UNet2DModel'"),
        ('{"_class_name": "DDIMScheduler"}', "no model class"),
        (
            '{"_class_name": "UNet2DModel", "block_out_channels": [32]}',
            "does not make a UNet2DModel",
        ),
    ],
)
def test_configs_that_are_no_use(tmp_path: Path, content: str, says: str) -> None:
    path = tmp_path / "config.json"
    path.write_text(content)
    with pytest.raises(OpboundError, match=says) as caught:
        importers.load(f"diffusers:{path}")
    assert "\n" not in str(caught.value)


def test_other_things_that_are_refused(tmp_path: Path) -> None:
    with pytest.raises(OpboundError, match=r"sd-1\.5-unet"):
        importers.load("diffusers:sd-1.5-une")
    source = config(tmp_path, "UNet2DModel")
    with pytest.raises(OpboundError, match="generates no tokens"):
        importers.load(source, mode="prefill")
    with pytest.raises(OpboundError, match="has no dim 'heigt'"):
        importers.load(source, dims={"heigt": 8})


# Parameters in millions: the models' cards and papers; FLOPs of DiT-XL/2: Peebles and Xie 2023, table 9
# (118.64 G multiply-adds).
PUBLISHED = {
    "sd-1.5-unet": (859.5, None),
    "sdxl-unet": (2567.5, None),
    "sd-1.5-vae": (83.65, None),
    "sd3-medium-transformer": (2028.3, None),
    "flux.1-dev-transformer": (11901.4, None),
    "dit-xl-2-256": (None, 2 * 118.64e9),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", PUBLISHED)
def test_published_sizes(name: str) -> None:
    millions, flops = PUBLISHED[name]
    graph = importers.load(f"diffusers:{name}").graph
    if millions is not None:
        found = sum(v.type.elements for v in graph.parameters)
        assert found / 1e6 == pytest.approx(millions, rel=1e-4)
    if flops is not None:
        assert product_flops(graph) == pytest.approx(flops, rel=2e-3)


def test_every_shipped_config_says_where_it_comes_from() -> None:
    from importers.diffusion import CONFIG_FOLDER

    assert set(config_names()) == set(PUBLISHED)
    for name in config_names():
        assert json.loads((CONFIG_FOLDER / f"{name}.json").read_text())["_source"]
