"""Inputs that few models take, by the name of their argument: masks, boxes, detected regions, time series.

What an argument needs is read from the config's fields; a model whose config has none of them is left alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from importers.hf_modalities import floats, parameters_of

_REGIONS = 36
"""Regions that a detector finds in an image, where the config says no number (LXMERT's setting)."""

Builder = Callable[[Any, Mapping[str, Any], int, int], Any]


def companions(
    model: Any, given: Mapping[str, Any], batch: int, sequence: int | None
) -> dict[str, Any]:
    """The arguments that a model needs beside those that are `given`.

    Args:
        model: the transformers model.
        given: the arguments that there are already.
        batch: samples.
        sequence: tokens per sample.
    """
    made: dict[str, Any] = {}
    for name, parameter in parameters_of(model).items():
        build = _BUILDERS.get(name)
        wanted = name not in _ONLY_REQUIRED or parameter.default is parameter.empty
        if build is not None and name not in given and wanted:
            found = build(model, {**given, **made}, batch, sequence or 1)
            if found is not None:
                made[name] = found
    return made


def missing(model: Any, given: Mapping[str, Any]) -> list[str]:
    """Arguments without a default that nothing was built for."""
    return [
        name
        for name, parameter in parameters_of(model).items()
        if parameter.default is parameter.empty
        and parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL)
        and name not in given
    ]


def _ones(like: str) -> Builder:
    """A mask over the last dim of another input, that keeps everything."""

    def build(model: Any, given: Mapping[str, Any], batch: int, sequence: int) -> Any:
        import torch

        source = given.get(like)
        return None if source is None else torch.ones(batch, source.shape[-1], dtype=torch.long)

    return build


def _boxes(model: Any, given: Mapping[str, Any], batch: int, sequence: int) -> Any:
    """The corners of each token's box; some models take four points instead, as floats."""
    import torch

    points = getattr(model.config, "dim_bbox", None)
    if points is not None:
        return floats(model, batch, sequence, int(points))
    return torch.zeros(batch, sequence, 4, dtype=torch.long)


def _regions(width: str) -> Builder:
    def build(model: Any, given: Mapping[str, Any], batch: int, sequence: int) -> Any:
        size = getattr(model.config, width, None)
        return None if size is None else floats(model, batch, _REGIONS, int(size))

    return build


def _image_positions(model: Any, given: Mapping[str, Any], batch: int, sequence: int) -> Any:
    """Marks where an image's features stand among the tokens: behind the first one."""
    import torch

    count = int(getattr(model.config, "latent_query_num", 0))
    mask = torch.zeros(batch, sequence, dtype=torch.bool)
    mask[:, 1 : 1 + count] = True
    return mask


def _long_recordings(model: Any, given: Mapping[str, Any], batch: int, sequence: int) -> Any:
    import torch

    return torch.ones(batch, 1, dtype=torch.bool)


def _vectors(width: str) -> Builder:
    """One vector per step of a sequence."""

    def build(model: Any, given: Mapping[str, Any], batch: int, sequence: int) -> Any:
        size = 1 if not width else getattr(model.config, width, None)
        return None if size is None else floats(model, batch, sequence, int(size))

    return build


def _steps(model: Any, given: Mapping[str, Any], batch: int, sequence: int) -> Any:
    """Numbers of the steps of an episode, for models that take states and actions."""
    import torch

    if not hasattr(model.config, "act_dim"):
        return None
    return torch.zeros(batch, sequence, dtype=torch.long)


_BUILDERS: Mapping[str, Builder] = {
    "feature_attention_mask": _ones("input_features"),
    "input_features_mask": _ones("input_features"),
    "padding_mask": _ones("input_values"),
    "bbox": _boxes,
    "visual_feats": _regions("visual_feat_dim"),
    "visual_pos": _regions("visual_pos_dim"),
    "image_embeds_position_mask": _image_positions,
    "is_longer": _long_recordings,
    "states": _vectors("state_dim"),
    "actions": _vectors("act_dim"),
    "returns_to_go": _vectors(""),
    "timesteps": _steps,
}
_ONLY_REQUIRED = frozenset({"padding_mask"})
"""Arguments that a model does without if it can."""
