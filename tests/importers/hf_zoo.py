"""Tiny configs of many transformers architectures: the defaults of each config class, shrunk.

What is shrunk is one table of field names, the same for all; an architecture's own exceptions stand in `OWN`.
"""

from __future__ import annotations

from typing import Any

SMALL: dict[str, Any] = {
    **dict.fromkeys(
        "hidden_size d_model n_embd dim embed_dim n_embed word_embed_proj_dim embedding_size "
        "attention_hidden_size projection_dim hidden_dim width".split(),
        64,
    ),
    **dict.fromkeys(
        "intermediate_size ffn_dim d_ff encoder_ffn_dim decoder_ffn_dim ffn_hidden_size n_inner "
        "decoder_intermediate_size moe_intermediate_size shared_expert_intermediate_size "
        "intermediate_size_mlp ffn_hidden_dim mlp_dim dense_intermediate_size "
        "dim_feedforward shared_intermediate_size".split(),
        96,
    ),
    **dict.fromkeys(
        "num_hidden_layers n_layer num_layers n_layers encoder_layers decoder_layers num_decoder_layers "
        "num_encoder_layers depth".split(),
        2,
    ),
    **dict.fromkeys(
        "num_attention_heads n_head num_heads n_heads encoder_attention_heads "
        "decoder_attention_heads".split(),
        4,
    ),
    **dict.fromkeys("num_key_value_heads multi_query_group_num".split(), 2),
    "head_dim": 16,
    "vocab_size": 96,
    **dict.fromkeys("pad_token_id unk_index".split(), 0),
    **dict.fromkeys("bos_token_id decoder_start_token_id".split(), 1),
    **dict.fromkeys("eos_token_id forced_eos_token_id sep_token_id".split(), 2),
    "cls_token_id": 1,
    **dict.fromkeys("image_token_id image_token_index".split(), 95),
    "video_token_id": 94,
    **dict.fromkeys("boi_token_id boi_token_index".split(), 93),
    **dict.fromkeys("eoi_token_id eoi_token_index".split(), 92),
    **dict.fromkeys("audio_token_id audio_token_index".split(), 91),
    "vision_start_token_id": 90,
    "vision_end_token_id": 89,
    "mask_token_id": 3,
    **dict.fromkeys(
        "max_position_embeddings n_positions max_source_positions max_target_positions max_seq_len "
        "block_size".split(),
        128,
    ),
    **dict.fromkeys("num_experts num_local_experts n_routed_experts moe_num_experts".split(), 4),
    **dict.fromkeys("num_experts_per_tok moe_top_k".split(), 2),
    **dict.fromkeys("n_group topk_group first_k_dense_replace n_shared_experts".split(), 1),
    **dict.fromkeys("q_lora_rank kv_lora_rank".split(), 32),
    **dict.fromkeys("qk_nope_head_dim v_head_dim".split(), 16),
    "qk_rope_head_dim": 8,
    **dict.fromkeys("sliding_window window attention_window".split(), 8),
    **dict.fromkeys("state_size ssm_state_size mamba_d_state".split(), 8),
    **dict.fromkeys("time_step_rank mamba_dt_rank".split(), 4),
    "image_size": 32,
    "patch_size": 8,
    "num_mel_bins": 16,
}

TEXT = """
llama llama4_text qwen2 qwen3 gemma gemma2 gemma3_text mistral ministral phi phi3 gpt2 gpt_neo
gpt_neox gptj gpt_bigcode codegen falcon opt bloom mpt starcoder2 cohere cohere2 olmo olmo2 olmo3
stablelm glm glm4 granite nemotron persimmon smollm3 helium ernie4_5 exaone4 seed_oss
hunyuan_v1_dense bitnet diffllama biogpt xglm openai-gpt ctrl arcee apertus nanochat mixtral
qwen2_moe qwen3_moe deepseek_v2 deepseek_v3 olmoe gpt_oss granitemoe granitemoeshared phimoe dbrx
jetmoe glm4_moe ernie4_5_moe hunyuan_v1_moe minimax_m2 dots1 mamba mamba2 falcon_mamba jamba bamba
rwkv recurrent_gemma zamba zamba2 falcon_h1 granitemoehybrid nemotron_h lfm2 qwen3_next xlstm
kimi_linear bert roberta distilbert albert electra deberta deberta-v2 modernbert xlm-roberta mpnet
camembert convbert mobilebert squeezebert funnel nystromformer roformer big_bird longformer fnet
ibert xlnet esm nomic_bert layoutlm megatron-bert ernie rembert xlm flaubert yoso canine reformer
""".split()
SEQUENCE_TO_SEQUENCE = """
t5 mt5 umt5 longt5 switch_transformers bart mbart pegasus marian blenderbot blenderbot-small m2m_100
led plbart prophetnet fsmt bigbird_pegasus pegasus_x t5gemma nllb-moe
""".split()
VISION = """
vit deit beit swin swinv2 convnext convnextv2 resnet regnet mobilenet_v1 mobilenet_v2 mobilevit
mobilevitv2 dinov2 dinov2_with_registers dinov3_vit detr conditional_detr deformable_detr
table-transformer rt_detr yolos sam segformer efficientnet bit cvt levit poolformer pvt pvt_v2
focalnet hiera vit_mae vit_msn data2vec-vision swiftformer glpn dpt depth_anything ijepa imagegpt
swin2sr vitdet mask2former maskformer upernet videomae timesformer vivit
""".split()
AUDIO = """
whisper wav2vec2 hubert wavlm unispeech unispeech-sat data2vec-audio sew sew-d wav2vec2-conformer
wav2vec2-bert audio-spectrogram-transformer speech_to_text speecht5 moonshine encodec clap
""".split()
MULTIMODAL = """
clip siglip siglip2 chinese_clip clipseg altclip align blip blip-2 instructblip llava llava_next
vipllava qwen2_vl qwen2_5_vl qwen3_vl paligemma gemma3 idefics2 idefics3 smolvlm mllama llama4
internvl mistral3 git vilt kosmos-2 pix2struct flava owlvit layoutlmv3 lxmert visual_bert fuyu
qwen2_audio
""".split()
FAMILIES = {
    "Text": TEXT,
    "Encoder-decoder": SEQUENCE_TO_SEQUENCE,
    "Vision": VISION,
    "Sound": AUDIO,
    "Several inputs": MULTIMODAL,
}
MODEL_TYPES = TEXT + SEQUENCE_TO_SEQUENCE + VISION + AUDIO + MULTIMODAL

SWIN = {
    "embed_dim": 12,
    "depths": [1, 1, 1, 1],
    "num_heads": [1, 2, 3, 6],
    "window_size": 2,
    "image_size": 64,
    "patch_size": 4,
}
RESNET = {
    "model_type": "resnet",
    "embedding_size": 16,
    "hidden_sizes": [16, 24, 32, 48],
    "depths": [1, 1, 1, 1],
    "layer_type": "basic",
    "out_features": ["stage4"],
}

SAMPLE = "llama4_text gemma3_text deepseek_v3 mamba t5 clip qwen2_vl".split()
"""Checked in every test run; the others by `-m slow`."""

NOT_IMPORTED = {
    "dbrx": "transformers 5 cannot build it from its own defaults",
}
"""Model types of the list that are not measured, and why."""

NOT_RUN = ("zamba2", "fuyu")
"""Model types without a small form: they are imported, but too large to be run for a comparison."""

SIZE_OF = {
    "zamba2": "default",
    "rt_detr": "default",
    "depth_anything": "default",
    "pix2struct": "default",
    "encodec": "default",
    "clap": "default",
    "upernet": "default",
    "mask2former": "default",
    "fuyu": "two layers",
}
"""Where a smaller config does not fit together: what is measured instead of the tiny one."""

DETR = {
    "use_timm_backbone": False,
    "use_pretrained_backbone": False,
    "backbone": None,
    "backbone_config": RESNET,
}
QWEN_VL = {
    "text_config": {
        "rope_parameters": {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 1e4}
    },
    "vision_config": {"out_hidden_size": 64},
}

OWN: dict[str, dict[str, Any]] = {
    "ministral": {"head_dim": 16},
    "hunyuan_v1_dense": {"head_dim": 16},
    "hunyuan_v1_moe": {"head_dim": 16},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "gptj": {"rotary_dim": 8},
    "codegen": {"rotary_dim": 8},
    "nemotron": {"num_key_value_heads": 2},
    "dots1": {"n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1},
    "deepseek_v2": {"num_experts_per_tok": 2, "head_dim": 8, "num_key_value_heads": 4},
    "deepseek_v3": {"head_dim": 8, "num_key_value_heads": 4},
    "mamba2": {"num_heads": 8, "head_dim": 16, "n_groups": 2},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2},
    "bamba": {"attn_layer_indices": [1]},
    "esm": {"vocab_size": 96, "mask_token_id": 3},
    "qwen3_next": {"layer_types": ["linear_attention", "full_attention"]},
    "recurrent_gemma": {"num_hidden_layers": 3},
    "zamba": {
        "num_hidden_layers": 6,
        "layer_types": ["mamba", "mamba", "hybrid"] * 2,
        "attention_hidden_size": 128,
        "attention_head_dim": 32,
    },
    "reformer": {
        "is_decoder": True,
        "axial_pos_embds_dim": [16, 48],
        "axial_pos_shape": [4, 6],
        "num_buckets": 4,
    },
    "swin": SWIN,
    "swinv2": SWIN,
    "swin2sr": SWIN | {"patch_size": 1, "image_size": 16},
    "maskformer": {"backbone_config": {"model_type": "swin", **SWIN}},
    "mask2former": {"backbone_config": {"model_type": "swin", **SWIN}},
    "mobilevitv2": {"image_size": 64},
    "levit": {"image_size": 64, "patch_size": 16},
    **dict.fromkeys(("detr", "conditional_detr", "deformable_detr", "table-transformer"), DETR),
    "resnet": RESNET,
    "xlm": {"emb_dim": 64, "n_words": 96},
    "convnext": {"num_stages": 4, "hidden_sizes": [16, 24, 32, 48], "depths": [1, 1, 2, 1]},
    "convnextv2": {"num_stages": 4, "hidden_sizes": [16, 24, 32, 48], "depths": [1, 1, 2, 1]},
    "efficientnet": {"hidden_dim": 2560},
    "llava_next": {"image_grid_pinpoints": [[32, 64]]},
    "vipllava": {"vision_feature_layers": [-1, -2]},
    "gemma3": {"mm_tokens_per_image": 4},
    "mllama": {
        "vision_config": {
            "intermediate_layers_indices": [0, 1],
            "vision_output_dim": 192,
            "num_global_layers": 1,
        },
        "text_config": {"cross_attention_layers": [1]},
    },
    "llama4": {
        "vision_config": {
            "vision_output_dim": 64,
            "projector_input_dim": 64,
            "projector_output_dim": 64,
            "intermediate_size": 256,
        }
    },
    **dict.fromkeys(("qwen2_vl", "qwen2_5_vl", "qwen3_vl"), QWEN_VL),
    "align": {"projection_dim": 640},
    "owlvit": {"text_config": {"max_position_embeddings": 32}},
    "layoutlmv3": {"coordinate_size": 8, "shape_size": 16},
    "dpt": {"num_hidden_layers": 4, "backbone_out_indices": [0, 1, 2, 3]},
    "sam": {
        "vision_config": {"output_channels": 64, "num_pos_feats": 32, "global_attn_indexes": [1]}
    },
}


SHALLOW = {
    key: SMALL[key]
    for key in (
        "num_hidden_layers n_layer num_layers n_layers encoder_layers decoder_layers "
        "num_decoder_layers num_encoder_layers depth num_experts num_local_experts n_routed_experts "
        "moe_num_experts num_experts_per_tok moe_top_k n_group topk_group first_k_dense_replace"
    ).split()
}
"""The part of `SMALL` that leaves widths alone, for configs whose widths must fit each other."""

SIZES: dict[str, dict[str, Any] | None] = {"tiny": SMALL, "two layers": SHALLOW, "default": None}
"""What is shrunk, the smallest first: the first that transformers accepts is measured."""


def small_config(model_type: str, size: str = "tiny") -> dict[str, Any]:
    """A config.json's content: the class's defaults, fields shrunk as `SIZES` says, in nested configs too."""
    from transformers import AutoConfig

    own = OWN.get(model_type, {}) if size == "tiny" else {}
    config = AutoConfig.for_model(
        model_type, **{k: v for k, v in own.items() if k.endswith("_config")}
    )
    table = SIZES[size]
    shrunk = {} if table is None else _shrunk(config, table)
    return _merged({"model_type": model_type} | shrunk, own)


def tiny_config(model_type: str) -> dict[str, Any]:
    """The smallest config that fits together."""
    return small_config(model_type, SIZE_OF.get(model_type, "tiny"))


def _merged(base: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    both = {k: _merged(base[k], v) for k, v in own.items() if isinstance(v, dict) and k in base}
    return base | own | both


def _shrunk(config: Any, table: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    names = {v: k for k, v in type(config).attribute_map.items()}
    staged = any(
        isinstance(getattr(config, n, None), list | tuple) for n in ("hidden_sizes", "depths")
    )
    for name, value in vars(config).items():
        if staged and name in ("hidden_size", "width"):
            continue
        if hasattr(value, "to_dict"):
            found[name] = {"model_type": value.model_type} | _shrunk(value, table)
            continue
        key = name if name in table else names.get(name, "")
        if key.endswith(("_token_id", "_token_index")) and key in table:
            found[name] = table[key]
        elif key in table and isinstance(value, int) and not isinstance(value, bool):
            found[name] = min(value, table[key])
        elif name == "layer_types":
            found[name] = None
    return found
