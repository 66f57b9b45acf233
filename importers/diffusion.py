"""Diffusion models from diffusers' configs: no weights, no network, nothing of the config is executed.

`diffusers:NAME` is a config that opbound ships in `importers/diffusion_configs`,
`diffusers:path/to/config.json` the user's own. The model is built on the meta device by diffusers' own class,
which the config names, and traced as any module.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from graph_ir.errors import DimensionError, ModelFileError, OpboundError, did_you_mean
from importers.config_files import read_config_file
from importers.imported_model import ImportedModel, ImportOptions

CONFIG_FOLDER = Path(__file__).parent / "diffusion_configs"
_DEFAULT_DTYPE = "bfloat16"
_TRACEABLE_DTYPES = ("float32", "float16", "bfloat16")


def config_names() -> list[str]:
    """Names of the configs that opbound ships."""
    return sorted(path.stem for path in CONFIG_FOLDER.glob("*.json"))


def import_diffusion(name_or_path: str, options: ImportOptions) -> ImportedModel:
    """Imports one denoising step, or one pass through an autoencoder, of a config's model.

    Args:
        name_or_path: shipped name, path of a config.json, or folder that holds one.
        options: sizes, dtype and mode. `sequence` is the length of the prompt's embedding; the dims
            `height` and `width` are those of the latent image, which the config's `sample_size` gives else.

    Raises:
        OpboundError: the config is not usable, or the model cannot be traced.
    """
    torch, diffusers = _libraries()
    content, name, digest = _read(name_or_path)
    if options.mode in ("prefill", "decode"):
        raise OpboundError(
            f"{name} generates no tokens: use mode inference for one denoising step, or training"
        )
    unknown = [d for d in options.dims if d not in ("height", "width")]
    if unknown:
        raise DimensionError(
            f"{name} has no dim {unknown[0]!r}; {did_you_mean(unknown[0], ['height', 'width'])}"
        )
    wanted = options.dtype or _DEFAULT_DTYPE
    with _quiet(diffusers):
        module = _build(torch, diffusers, content, name, _built_dtype(wanted))
    module.train(options.mode == "training")
    return _traced(
        module, replace(options, dtype=wanted), name, f"diffusers:{name_or_path}", digest
    )


def _traced(
    module: Any, options: ImportOptions, name: str, source: str, digest: str
) -> ImportedModel:
    import diffusers

    from importers.diffusion_inputs import inputs_of
    from importers.torch_routes import import_module

    kwargs, hints = inputs_of(module, options)
    return import_module(
        module,
        (),
        kwargs,
        options,
        inputs=hints,
        importer=f"diffusers {diffusers.__version__}",
        name=name,
        source=source,
        sha256=digest,
        notes=["one pass of the network; a sampler makes one or two per denoising step"],
    )


def _read(name_or_path: str) -> tuple[Mapping[str, Any], str, str]:
    shipped = name_or_path in config_names()
    path = CONFIG_FOLDER / f"{name_or_path}.json" if shipped else Path(name_or_path)
    if path.is_dir():
        path = path / "config.json"
    if not path.is_file():
        raise ModelFileError(
            f"no diffusers config {name_or_path!r} ships with opbound and no such file exists; "
            f"{did_you_mean(name_or_path, config_names())}"
        )
    name, content, digest = read_config_file(
        path,
        "_class_name",
        "give the config.json of a diffusers model (of its unet, transformer or vae folder)",
    )
    return content, name, digest


def _build(torch: Any, diffusers: Any, content: Mapping[str, Any], name: str, dtype: str) -> Any:
    """The model on the meta device, in eval mode."""
    class_name = content["_class_name"]
    kind = getattr(diffusers, class_name, None)
    if not (isinstance(kind, type) and issubclass(kind, diffusers.ModelMixin)):
        known = [n for n in dir(diffusers) if n.endswith(("Model", "2D", "KL"))]
        raise OpboundError(
            f"config {name}: diffusers {diffusers.__version__} has no model class {class_name!r}; "
            f"{did_you_mean(class_name, known)}"
        )
    model_class: Any = kind
    own = {k: v for k, v in content.items() if not k.startswith("_")}
    try:
        with torch.device("meta"):
            return model_class.from_config(own).to(getattr(torch, dtype)).eval()
    except Exception as error:  # diffusers raises anything on a config that does not fit the class
        text = " ".join(str(error).split())[:240]
        raise OpboundError(
            f"config {name} does not make a {class_name}: {type(error).__name__}: {text}"
        ) from error


def _built_dtype(wanted: str) -> str:
    """The dtype to trace in: `wanted` where torch computes in it, else bfloat16."""
    from graph_ir.tensor_type import DType

    label = str(DType.parse(wanted))
    return label if label in _TRACEABLE_DTYPES else _DEFAULT_DTYPE


def _libraries() -> tuple[Any, Any]:
    try:
        import diffusers
        import torch
    except ImportError as error:
        why = " ".join(str(error).split())[:120]
        raise OpboundError(
            f"diffusers: models need torch and diffusers ({why}): pip install 'opbound[diffusion]'"
        ) from error
    return torch, diffusers


@contextmanager
def _quiet(diffusers: Any) -> Iterator[None]:
    """Silences diffusers' advice on keys that a class does not use."""
    before = diffusers.logging.get_verbosity()
    diffusers.logging.set_verbosity_error()
    try:
        yield
    finally:
        diffusers.logging.set_verbosity(before)
