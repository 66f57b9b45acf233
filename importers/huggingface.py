"""Hugging Face architectures from their configs: no weights, no network, nothing of the config is executed.

`hf:NAME` is a config that opbound ships in `importers/model_configs`, `hf:path/to/config.json` the user's
own. The model is built on the meta device by transformers' own code and traced with torch.export.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from graph_ir.errors import (
    DimensionError,
    ModelFileError,
    OpboundError,
    UnknownOperatorError,
    did_you_mean,
)
from importers.config_files import read_config_file
from importers.imported_model import ImportedModel, ImportOptions

CONFIG_FOLDER = Path(__file__).parent / "model_configs"
DEFAULT_DTYPE = "bfloat16"
_TRACEABLE_DTYPES = ("float32", "float16", "bfloat16")

_OWN_KEYS = ("_source", "source", "_attn_implementation", "_experts_implementation")
_MASKLESS_SDPA = "opbound_sdpa"
_ATTENTION = ("sdpa", "eager")

# What a config without `architectures` is taken for, first match first.
_TWO_PART = ("MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM", "MODEL_FOR_SPEECH_SEQ_2_SEQ")
_ONE_PART = (
    "MODEL_FOR_IMAGE_TEXT_TO_TEXT",
    "MODEL_FOR_CAUSAL_LM",
    "MODEL_FOR_SPEECH_SEQ_2_SEQ",
    "MODEL_FOR_IMAGE_CLASSIFICATION",
    "MODEL_FOR_SEMANTIC_SEGMENTATION",
    "MODEL_FOR_OBJECT_DETECTION",
    "MODEL_FOR_DEPTH_ESTIMATION",
)


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """A config file as read: plain data, not yet a transformers object."""

    name: str
    content: Mapping[str, Any]
    sha256: str

    @property
    def model_type(self) -> str:
        """Name that transformers gives the architecture family, e.g. `llama`."""
        return str(self.content["model_type"])


def config_names() -> list[str]:
    """Names of the configs that opbound ships."""
    return sorted(path.stem for path in CONFIG_FOLDER.glob("*.json"))


def read_config(name_or_path: str) -> ModelConfig:
    """Reads a shipped config by name, or a config.json (or the folder that holds one) by path.

    Raises:
        ModelFileError: it does not exist, is not JSON, or does not say its `model_type`.
    """
    shipped = CONFIG_FOLDER / f"{name_or_path}.json"
    path = shipped if name_or_path in config_names() else Path(name_or_path)
    if path.is_dir():
        path = path / "config.json"
    if not path.is_file():
        if name_or_path.count("/") == 1 and not name_or_path.startswith((".", "/", "~")):
            raise ModelFileError(
                f"{name_or_path!r} is no file or folder here, and opbound downloads nothing: save that "
                f"repository's config.json and give its path, as hf:path/to/config.json"
            )
        hint = did_you_mean(name_or_path, config_names())
        raise ModelFileError(
            f"no config {name_or_path!r} ships with opbound and no such file exists; {hint}"
        )
    advice = "give the config.json of a transformers model"
    return ModelConfig(*read_config_file(path, "model_type", advice))


def import_huggingface(name_or_path: str, options: ImportOptions) -> ImportedModel:
    """Imports the architecture of a config into an operator graph.

    Args:
        name_or_path: shipped name, path of a config.json, or folder that holds one.
        options: sizes, dtype and mode; batch defaults to 1, sequence to `hf_inputs.DEFAULT_SEQUENCE` or
            the model's longest, whichever is less, dtype to the config's own, else bfloat16.

    Raises:
        OpboundError: the config is not usable, or the model cannot be traced.
    """
    config = read_config(name_or_path)
    _, transformers = _libraries()
    wanted = options.dtype or str(_own_dtype(config.content) or DEFAULT_DTYPE).removeprefix(
        "torch."
    )
    built_dtype = wanted if wanted in _TRACEABLE_DTYPES else _canonical_dtype(wanted)
    with _quiet(transformers):
        refused: OpboundError | None = None
        # Some models mix in fp32 tensors of their own and only run in fp32; some compute sizes from buffers.
        ways = dict.fromkeys(((built_dtype, False), ("float32", False), (built_dtype, True)))
        for dtype, numbers in ways:
            try:
                return _import_in(
                    config, dtype, replace(options, dtype=wanted), name_or_path, numbers
                )
            except (DimensionError, UnknownOperatorError):
                raise
            except OpboundError as error:
                refused = refused or error
        raise refused or OpboundError(f"{config.name} cannot be imported")


def _import_in(
    config: ModelConfig, dtype: str, options: ImportOptions, asked: str, numbers: bool
) -> ImportedModel:
    """Builds the model in one dtype and imports it."""
    import transformers

    from importers.hf_inputs import traceable
    from importers.hf_running import as_when_run
    from importers.torch_experts import experts_note
    from importers.torch_routes import import_module

    model = build_model(config, dtype, numbers=numbers)
    model.train(options.mode == "training")
    case = traceable(model, options)
    notes = list(case.notes)
    if not config.content.get("architectures"):
        notes.append(f"the config names no architecture: {type(model).__name__} was built")
    if "quantization_config" in config.content:
        notes.append(
            "the config's quantization_config is not applied: weights count in the model's dtype"
        )

    def imported(kwargs: Mapping[str, Any]) -> ImportedModel:
        return import_module(
            case.module,
            case.args,
            kwargs,
            options,
            importer=f"transformers {transformers.__version__}",
            name=config.name,
            source=f"hf:{asked}",
            sha256=config.sha256,
            inputs=case.inputs,
            module_prefix=case.prefix,
            notes=notes,
            first_cache_output=case.first_cache_output,
        )

    with as_when_run(model):
        try:
            found = imported(case.kwargs)
        except OpboundError:
            if "attention_mask" not in case.kwargs:
                raise
            # Not every model takes a mask of four dims; left alone, it makes its own.
            found = imported({k: v for k, v in case.kwargs.items() if k != "attention_mask"})
    tokens = case.batch * (case.sequence or 1)
    return replace(
        found,
        batch=case.batch,
        sequence=case.sequence,
        notes=(*found.notes, *experts_note(found.graph, tokens)),
    )


def build_model(config: ModelConfig, dtype: str = DEFAULT_DTYPE, *, numbers: bool = False) -> Any:
    """The transformers model of a config, on the meta device, in `dtype`, in eval mode.

    Attention runs as `scaled_dot_product_attention` unless the config's `_attn_implementation` says
    `eager` or the architecture cannot. Experts run as one grouped product over the expert axis. With
    `numbers`, buffers of whole numbers keep their contents, on the CPU.

    Raises:
        OpboundError: transformers does not know the architecture, or refuses the config.
    """
    torch, transformers = _libraries()
    settings = {
        k: v for k, v in config.content.items() if k not in (*_OWN_KEYS, "model_type", "auto_map")
    }
    known = transformers.models.auto.configuration_auto.CONFIG_MAPPING_NAMES
    if config.model_type not in known:
        if "auto_map" in config.content:
            raise OpboundError(
                f"config {config.name} asks for code of its own (auto_map), which opbound never runs: "
                f"transformers {transformers.__version__} itself has no model_type {config.model_type!r}"
            )
        raise OpboundError(
            f"transformers {transformers.__version__} has no model_type {config.model_type!r} "
            f"(config {config.name}); {_closest(config.model_type, known)}"
        )
    try:
        hf_config = transformers.AutoConfig.for_model(config.model_type, **settings)
        model_class = _model_class(transformers, config, hf_config)
        from importers.hf_running import numbers_on_cpu

        with torch.device("meta"), numbers_on_cpu() if numbers else nullcontext():
            return _instantiate(
                model_class, hf_config, getattr(torch, dtype), config.content
            ).eval()
    except OpboundError:
        raise
    except (
        Exception
    ) as error:  # a wrong config reaches transformers' own code, which may raise anything
        raise OpboundError(
            f"transformers cannot build {config.name}: {_one_line(error)}"
        ) from error


def _instantiate(model_class: Any, hf_config: Any, dtype: Any, content: Mapping[str, Any]) -> Any:
    """Builds the model with the first kind of attention that the architecture has."""
    wanted = str(content.get("_attn_implementation", "sdpa"))
    if wanted not in _ATTENTION:
        # Other names load kernels from the network.
        raise OpboundError(
            f"_attn_implementation is {wanted!r}: opbound knows {' and '.join(_ATTENTION)}"
        )
    kinds = [wanted] if wanted != "sdpa" else ["sdpa", "eager"]
    if wanted == "sdpa" and not _needs_mask(hf_config):
        kinds.insert(0, register_maskless_sdpa())
    extra = {}
    if "_experts_implementation" in content:
        extra["experts_implementation"] = content["_experts_implementation"]
    for kind in kinds:
        try:
            return model_class._from_config(
                hf_config, dtype=dtype, attn_implementation=kind, **extra
            )
        except (ValueError, KeyError):
            if kind == kinds[-1]:
                raise
    raise OpboundError(f"{model_class.__name__} has no attention of kind {wanted!r}")


def register_maskless_sdpa() -> str:
    """Registers transformers' SDPA attention under a name for which it builds no mask, and returns it.

    Run eagerly, transformers drops a plain causal mask and passes `is_causal` to SDPA. While it is traced
    it cannot look at the mask and would hand a materialised one to every layer, which no user runs. For an
    attention it has no mask function for, it leaves the mask to `is_causal` without looking.
    """
    from transformers import AttentionInterface
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    AttentionInterface.register(_MASKLESS_SDPA, sdpa_attention_forward)
    return _MASKLESS_SDPA


def _needs_mask(hf_config: Any) -> bool:
    """Whether attention is limited to a window, so that `is_causal` alone would not describe it."""
    text = hf_config.get_text_config() if hasattr(hf_config, "get_text_config") else hf_config
    layers = getattr(text, "layer_types", None)
    if layers is not None:
        return any("full" not in kind for kind in layers)
    return getattr(text, "sliding_window", None) is not None


def _model_class(transformers: Any, config: ModelConfig, hf_config: Any) -> Any:
    """The class the config's `architectures` names, else the one that its family is known for."""
    for name in config.content.get("architectures") or ():
        found = getattr(transformers, str(name), None)
        if found is not None:
            return found
    auto = transformers.models.auto.modeling_auto
    order: tuple[str, ...] = _TWO_PART if getattr(hf_config, "is_encoder_decoder", False) else ()
    if hasattr(hf_config, "text_config") and hasattr(hf_config, "vision_config"):
        order = _ONE_PART[:1]
    elif not order:
        masked = type(hf_config) in auto.MODEL_FOR_MASKED_LM_MAPPING
        encoder = masked and not getattr(hf_config, "is_decoder", False)
        order = ("MODEL_FOR_MASKED_LM", *_ONE_PART) if encoder else _ONE_PART
    others = [n.removesuffix("_MAPPING") for n in dir(auto) if n.endswith("_MAPPING")]
    for purpose in (*order, "MODEL", "MODEL_FOR_PRETRAINING", *others):
        mapping = getattr(auto, f"{purpose}_MAPPING")
        if hasattr(mapping, "keys") and type(hf_config) in mapping:
            found = mapping[type(hf_config)]
            return found[0] if isinstance(found, tuple) else found
    own = _own_classes(hf_config)
    if own:
        return own[0]
    raise OpboundError(
        f"config {config.name} names no architecture that transformers {transformers.__version__} has: "
        f"set 'architectures' to one of its model classes"
    )


def _own_classes(hf_config: Any) -> list[Any]:
    """Models of a part of another model (its tower, its decoder), the plainest name first."""
    place = type(hf_config).__module__.replace(".configuration_", ".modeling_")
    try:
        module = importlib.import_module(place)
    except ImportError:
        return []
    found = [
        kind
        for kind in vars(module).values()
        if getattr(kind, "config_class", None) is type(hf_config)
        and kind.__module__ == place
        and not kind.__name__.endswith("PreTrainedModel")
    ]
    return sorted(found, key=lambda kind: (not kind.__name__.endswith("Model"), kind.__name__))


def _own_dtype(content: Mapping[str, Any]) -> object:
    return content.get("dtype") or content.get("torch_dtype")


def _canonical_dtype(wanted: str) -> str:
    """The dtype to build the model in: `wanted` where torch can trace it, else bfloat16."""
    from graph_ir.tensor_type import DType

    label = str(DType.parse(wanted))
    return label if label in _TRACEABLE_DTYPES else DEFAULT_DTYPE


def _closest(name: str, known: Any) -> str:
    from difflib import get_close_matches

    close = get_close_matches(name, list(known), n=1)
    return f"did you mean {close[0]!r}?" if close else "see transformers' list of model types"


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__


def _libraries() -> tuple[Any, Any]:
    try:
        import torch
        import transformers
    except ImportError as error:
        raise OpboundError(
            f"hf: models need torch and transformers ({error.name} is missing): pip install 'opbound[hf]'"
        ) from error
    return torch, transformers


@contextmanager
def _quiet(transformers: Any) -> Iterator[None]:
    """Keeps transformers off the network, and silences its advice, which is noise where no weight exists."""
    from huggingface_hub import constants

    before, online = transformers.logging.get_verbosity(), constants.HF_HUB_OFFLINE
    transformers.logging.set_verbosity_error()
    constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        transformers.logging.set_verbosity(before)
        constants.HF_HUB_OFFLINE = online
