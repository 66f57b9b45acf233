"""Example inputs other than plain text: images, sound, and text with images in it.

What a model takes is read from its `forward` and its config's fields; names of models occur nowhere.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from graph_ir.errors import OpboundError

DEFAULT_PIXELS = 224
"""Side of an image where no config field says one."""
DEFAULT_SAMPLES = 16000
"""Samples of sound: one second at 16 kHz."""
DEFAULT_FRAMES = 128
"""Frames of spectrogram where no config field says how many."""

_SUB_CONFIGS = (
    "vision_config",
    "image_config",
    "audio_config",
    "encoder_config",
    "backbone_config",
    "encoder",
)


def field_of(config: Any, *names: str, default: Any = None) -> Any:
    """The first of these fields that the config or one of its parts has."""
    parts = [getattr(config, p, None) for p in _SUB_CONFIGS]
    for part in (config, *(p for p in parts if p is not None)):
        for name in names:
            found = getattr(part, name, None)
            if found is not None:
                return found
    return default


def parameters_of(model: Any) -> Mapping[str, Any]:
    """The parameters of a model's `forward`."""
    return inspect.signature(model.forward).parameters


def pixels(model: Any, batch: int) -> Any:
    """One image (or one clip, if the config has frames) per sample, in the config's size.

    Returns:
        Meta tensor [batch, channels, height, width] or [batch, frames, channels, height, width].
    """
    config = model.config
    size = field_of(config, "image_size", "img_size", default=DEFAULT_PIXELS)
    if isinstance(size, Mapping):
        size = (size.get("height", DEFAULT_PIXELS), size.get("width", DEFAULT_PIXELS))
    height, width = (size, size) if isinstance(size, int) else tuple(size)[:2]
    channels = int(field_of(config, "num_channels", "in_channels", "in_chans", default=3))
    shape = [batch, channels, int(height), int(width)]
    frames = getattr(config, "num_frames", None)
    if frames is not None and getattr(model, "main_input_name", "") == "pixel_values":
        shape.insert(1, int(frames))
    return floats(model, *shape)


def sound(model: Any, name: str, batch: int, length: int | None) -> Any:
    """Samples or spectrogram frames.

    Args:
        model: the transformers model.
        name: `input_values` or `input_features`.
        batch: number of recordings.
        length: samples or frames; None takes the config's number, or a default.
    """
    config = model.config
    bins = field_of(config, "num_mel_bins", "input_feat_per_channel", "feature_size")
    fixed = field_of(config, "max_length") if hasattr(config, "frequency_stride") else None
    if name == "input_values" and fixed is None:
        channels = [int(config.audio_channels)] if hasattr(config, "audio_channels") else []
        return floats(model, batch, *channels, length or DEFAULT_SAMPLES)
    if fixed is not None:
        return floats(model, batch, int(fixed), int(bins))
    width = getattr(config, "feature_projection_input_dim", None)
    if width is not None:
        return floats(model, batch, length or DEFAULT_FRAMES, int(width))
    audio = getattr(config, "audio_config", config)
    if hasattr(audio, "spec_size"):
        # Square spectrograms, cut out of longer ones: the whole and three parts of it (CLAP's kind).
        views = 4 if audio.enable_fusion else 1
        frames = int(audio.spec_size) ** 2 // int(audio.num_mel_bins)
        return floats(model, batch, views, frames, int(audio.num_mel_bins))
    if bins is None:
        raise OpboundError(
            f"{type(model).__name__} takes {name!r} of a width that its config does not say: "
            f"pass the module with example inputs through opbound.analyze"
        )
    positions = field_of(config, "max_source_positions")
    if hasattr(config, "input_feat_per_channel"):
        return floats(model, batch, length or DEFAULT_FRAMES, int(bins))
    # Whisper's kind: two frames per position, the bins before the frames.
    return floats(model, batch, int(bins), length or 2 * int(positions or DEFAULT_FRAMES))


def media_tokens(model: Any, batch: int, sequence: int, media: Mapping[str, Any]) -> Any:
    """Token numbers with room for the features of an image or a recording, int64[batch, sequence] on the CPU.

    The model itself says how many features it makes: its `get_image_features` or `get_audio_features` is run
    on the meta device. Models without a token for such features take them beside the text.
    """
    import torch

    config = model.config
    ids = torch.ones(batch, sequence, dtype=torch.long)
    count, marker = int(getattr(config, "latent_query_num", 0)), 0
    for names, method in _MARKERS.items():
        token = field_of(config, *names)
        given = any(k in media for k in _MEDIA[method])
        if token is None or not given or count:
            continue
        if hasattr(model, method):
            count, marker = _features(model, media, method) // batch, int(token)
        elif hasattr(getattr(model, "audio_tower", None), "_get_feat_extract_output_lengths"):
            frames = media["input_features"].shape[-1]
            count = int(model.audio_tower._get_feat_extract_output_lengths(frames)[1])
            marker = int(token)
    if not count:
        return ids
    wide = torch.ones(batch, max(sequence, count + 2), dtype=torch.long)
    wide[:, 1 : 1 + count] = marker
    start = getattr(config, "vision_start_token_id", None)
    if start is not None:
        wide[:, 0] = int(start)
    return wide


_MARKERS: Mapping[tuple[str, ...], str] = {
    ("image_token_id", "image_token_index", "media_token_id"): "get_image_features",
    ("audio_token_id", "audio_token_index"): "get_audio_features",
}
_MEDIA = {
    "get_image_features": ("pixel_values",),
    "get_audio_features": ("input_features", "input_values"),
}


def _features(model: Any, media: Mapping[str, Any], method: str) -> int:
    """Rows that an image or recording fills in the language model's input, for the whole batch."""
    import torch

    names = inspect.signature(getattr(model, method)).parameters
    every = any(p.kind is p.VAR_POSITIONAL for p in names.values())
    given = {k: v for k, v in media.items() if k in names or every}
    found: list[Any] = []

    def keep(value: Any) -> None:
        if isinstance(value, torch.Tensor):
            found.append(value)
        elif isinstance(value, list | tuple):
            for part in value:
                keep(part)

    with torch.no_grad():
        from importers.torch_trace_modes import mixed_devices

        # Padding that only the pixels could tell is taken as none.
        assume = torch.fx.experimental._config.patch(meta_nonzero_assume_all_nonzero=True)
        try:
            with mixed_devices(), assume:
                made = getattr(model, method)(**given)
        except Exception as error:  # the model's own code runs here and may raise anything
            text = " ".join(str(error).split())[:200]
            raise OpboundError(
                f"{type(model).__name__}.{method} does not run on the inputs that its config describes: "
                f"{type(error).__name__}: {text}"
            ) from error
    pooled = getattr(made, "pooler_output", None)
    keep(pooled if pooled is not None else getattr(made, "last_hidden_state", made))
    return sum(t.numel() // t.shape[-1] for t in found)


def images(model: Any, batch: int) -> dict[str, Any]:
    """The image inputs of a model that takes text too, in the form that its `forward` names."""
    import torch

    names = parameters_of(model)
    if "image_grid_thw" in names:
        return patches(model, batch)
    if "spatial_shapes" in names:
        return _packed(model, batch)
    found = {"pixel_values": pixels(model, batch)}
    values = found["pixel_values"]
    if "image_patches" in names:
        side = int(model.config.patch_size)
        cells = (values.shape[-2] // side) * (values.shape[-1] // side)
        found["pixel_values"] = floats(model, batch, cells, side * side * values.shape[1])
    elif "aspect_ratio_ids" in names:
        tiles = int(field_of(model.config, "max_num_tiles", default=4))
        found["pixel_values"] = floats(model, batch, 1, tiles, *values.shape[1:])
        found["aspect_ratio_ids"] = torch.ones(batch, 1, dtype=torch.long)
        found["aspect_ratio_mask"] = torch.ones(batch, 1, tiles, dtype=torch.long)
    elif "pixel_attention_mask" in names:
        # Images of nothing but zeros are padding, and are dropped: the contents are looked at.
        whole = torch.ones(batch, 1, *values.shape[1:], dtype=model.dtype)
        found["pixel_values"] = keep_contents(whole)
    elif getattr(model.config, "image_grid_pinpoints", None) is not None:
        # The smallest of the resolutions, in tiles, and the whole image once more.
        high, wide = min(model.config.image_grid_pinpoints, key=lambda size: size[0] * size[1])
        tiles = (high // values.shape[-2]) * (wide // values.shape[-1])
        found["pixel_values"] = floats(model, batch, tiles + 1, *values.shape[1:])
        found["image_sizes"] = torch.tensor([[high, wide]] * batch)
    elif "image_sizes" in names and _measures_images(model):
        found["image_sizes"] = torch.tensor([list(values.shape[-2:])] * batch)
    return found


def keep_contents(tensor: Any) -> Any:
    """Marks a float tensor on the CPU: a run-time trace computes with its numbers as long as it can."""
    tensor.contents_kept = True
    return tensor


def _measures_images(model: Any) -> bool:
    """Whether the part that sees images asks for the size of each."""
    return any(
        "image_sizes" in parameters_of(part) and "input_ids" not in parameters_of(part)
        for part in model.modules()
        if part is not model
    )


def _packed(model: Any, batch: int) -> dict[str, Any]:
    """Patches of images of any form, padded to one length (SigLIP 2's kind)."""
    import torch

    vision = model.config.vision_config
    side = int(int(field_of(vision, "num_patches")) ** 0.5)
    width = int(vision.num_channels) * int(vision.patch_size) ** 2
    return {
        "pixel_values": floats(model, batch, side * side, width),
        "pixel_attention_mask": torch.ones(batch, side * side, dtype=torch.long),
        "spatial_shapes": torch.tensor([[side, side]] * batch),
    }


def patches(model: Any, batch: int) -> dict[str, Any]:
    """Images already cut into patches, with the grid of each (Qwen-VL's kind).

    Returns:
        `pixel_values` float[patches, channels x time x side x side] and `image_grid_thw` int64[batch, 3].
    """
    import torch

    vision = model.config.vision_config
    side = int(field_of(vision, "patch_size"))
    merge = int(getattr(vision, "spatial_merge_size", 1))
    time = int(getattr(vision, "temporal_patch_size", 1))
    channels = int(field_of(vision, "in_channels", "in_chans", "num_channels", default=3))
    size = field_of(vision, "image_size", default=DEFAULT_PIXELS)
    cells = max(int(size) // side // merge, 1) * merge
    grid = torch.tensor([[1, cells, cells]] * batch)
    width = channels * time * side * side
    return {
        "pixel_values": floats(model, batch * cells * cells, width),
        "image_grid_thw": grid,
    }


def floats(model: Any, *shape: int) -> Any:
    """A meta tensor of the model's dtype."""
    import torch

    return torch.zeros(shape, dtype=model.dtype, device="meta")
