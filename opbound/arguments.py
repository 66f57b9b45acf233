"""The options that commands share, and the analysis that the typed ones ask for."""

from __future__ import annotations

import argparse

from graph_ir.errors import OpboundError
from opbound.model_answers import add_answer_options, answers_of
from opbound.options import (
    BALANCES,
    DEFAULT_HARDWARE,
    DEFAULT_NEW_TOKENS,
    DEFAULT_PROMPT_TOKENS,
    EXECUTION,
    LAUNCHES,
    MODES,
    OPTIMIZERS,
    RECOMPUTE,
    ZERO_STAGES,
    Options,
    parallel_options,
    parse_dim,
    parse_stages,
)
from opbound.strategy_arguments import add_strategy_details, strategy_details

_MODEL_HELP = """\
an ONNX file; hf:NAME or hf:path/to/config.json, an architecture from its config, without weights;
diffusers:NAME or diffusers:path/to/config.json, a diffusion model from its config;
package.module:factory, which imports and calls your code; or an exported program (.pt2)"""


def add_analysis(parser: argparse.ArgumentParser) -> None:
    """Adds all options of an analysis but the model."""
    _add_device(parser)
    _add_mode(parser)
    add_sizes(parser)
    _add_strategy(parser)


def add_model(parser: argparse.ArgumentParser) -> None:
    """Adds the model to analyse."""
    parser.add_argument("model", metavar="MODEL", help=_MODEL_HELP)


def add_one_device_analysis(parser: argparse.ArgumentParser) -> None:
    """Adds the options of one inference on one device; `options_of` finds the others at their defaults."""
    _add_device(parser)
    add_sizes(parser, generation=False)
    _add_execution(parser.add_argument_group("execution"))
    parser.set_defaults(
        **dict.fromkeys(("prompt_tokens", "new_tokens", "microbatch", "parallel", "optimizer")),
        mode="inference",
        sequence_parallel=False,
        zero=0,
        schedule="1f1b",
        stages=None,
        balance="time",
        recompute="none",
    )


def _add_mode(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--mode", choices=MODES, default="inference", help="default: %(default)s")


def _add_device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--hardware",
        default=DEFAULT_HARDWARE,
        metavar="NAME|FILE",
        help="a shipped device or cluster (see `opbound hardware`) or your own YAML file "
        "(default: %(default)s)",
    )


def add_sizes(parser: argparse.ArgumentParser, *, generation: bool = True) -> None:
    """Adds the sizes of a run and the answers to what an ONNX file leaves open."""
    group = parser.add_argument_group("sizes")
    group.add_argument("--batch", type=_size, metavar="N", help="samples in the global batch")
    group.add_argument("--sequence", type=_size, metavar="N", help="tokens per sample")
    if generation:
        _add_generation(group)
    group.add_argument(
        "--dim",
        action="append",
        default=[],
        metavar="NAME=INT",
        help="size of a dynamic dim of the model; may be repeated",
    )
    add_answer_options(group)
    group.add_argument("--dtype", metavar="NAME", help="replaces the model's float dtypes: bf16")


def _add_generation(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--prompt-tokens",
        type=_size,
        metavar="N",
        help=f"tokens of the prefill, in generation mode (default: {DEFAULT_PROMPT_TOKENS})",
    )
    group.add_argument(
        "--new-tokens",
        type=_size,
        metavar="N",
        help=f"decode steps, in generation mode (default: {DEFAULT_NEW_TOKENS})",
    )


def _add_strategy(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("strategy and execution")
    group.add_argument(
        "--parallel",
        metavar="dp=2,tp=8,pp=4",
        help="data (dp), tensor (tp; over rows and columns tp=4x4, with depth tp=4x4x2), pipeline (pp), "
        "context (cp) and expert (ep) parallelism; "
        "an axis not named has size 1; over auto=N the split is searched axis by axis; auto or "
        "auto:64 (devices) searches the whole strategy",
    )
    group.add_argument(
        "--sequence-parallel",
        action="store_true",
        help="shard the sequence where tensor parallelism does not",
    )
    group.add_argument(
        "--zero",
        type=int,
        choices=ZERO_STAGES,
        default=0,
        help="what data parallelism shards: 1 optimizer state, 2 gradients too, 3 parameters too",
    )
    add_strategy_details(group)
    group.add_argument(
        "--microbatch", type=_size, metavar="N", help="samples of a micro-batch on one dp rank"
    )
    group.add_argument(
        "--schedule",
        default="1f1b",
        metavar="1f1b|gpipe|interleaved:V|zb-h1|zb-v|dualpipe",
        help="order of a pipeline's work (default: %(default)s)",
    )
    group.add_argument(
        "--stages",
        metavar="10,12,12,10",
        help="repeated layers of each pipeline stage (default: balanced)",
    )
    group.add_argument(
        "--balance",
        choices=BALANCES,
        default="time",
        help="what the worst pipeline stage gets least of; fit: time as far as the device's memory "
        "allows (default: %(default)s)",
    )
    group.add_argument(
        "--recompute",
        choices=RECOMPUTE,
        default="none",
        help="activations that the backward pass computes again; fit: on each pipeline rank as little "
        "as its memory allows (default: %(default)s)",
    )
    group.add_argument("--optimizer", choices=OPTIMIZERS, help="in training mode (default: adamw)")
    _add_execution(group)


def _add_execution(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--execution",
        choices=EXECUTION,
        default="eager",
        help="one kernel per operator; pointwise: forward chains of elementwise operators fused, as "
        "hand-written kernels do; or fused by a compiler, attention too (default: %(default)s)",
    )
    group.add_argument(
        "--launches",
        choices=LAUNCHES,
        help="kernels are recorded once and replayed (CUDA graphs), or issued one by one by the host, for "
        "which short ones then wait (default: what the device's file says)",
    )
    group.add_argument(
        "--expert-imbalance",
        type=_ratio,
        default=1.0,
        metavar="F",
        help="mixture of experts: tokens of the busiest expert (of the busiest rank, with ep) over the "
        "mean (default: 1, balanced)",
    )
    group.add_argument(
        "--allow-unknown",
        action="store_true",
        help="report operators without a record as `unknown` in place of stopping",
    )


def options_of(arguments: argparse.Namespace) -> Options:
    """The analysis that the parsed arguments ask for.

    Raises:
        OpboundError: if they contradict each other or have values that cannot be used.
    """
    dims: dict[str, int] = {}
    for text in arguments.dim:
        name, size = parse_dim(text)
        if dims.setdefault(name, size) != size:
            raise OpboundError(f"--dim {name} is given twice, as {dims[name]} and as {size}")
    parallel, auto = parallel_options(arguments.parallel)
    return Options(
        hardware=arguments.hardware,
        mode=arguments.mode,
        prompt_tokens=arguments.prompt_tokens,
        new_tokens=arguments.new_tokens,
        batch=arguments.batch,
        sequence=arguments.sequence,
        dims=dims,
        dtype=arguments.dtype,
        parallel=parallel,
        auto=auto,
        sequence_parallel=arguments.sequence_parallel,
        zero=arguments.zero,
        microbatch=arguments.microbatch,
        schedule=arguments.schedule,
        stages=parse_stages(arguments.stages) if arguments.stages is not None else (),
        balance=arguments.balance,
        recompute=arguments.recompute,
        optimizer=arguments.optimizer,
        execution=arguments.execution,
        launches=arguments.launches,
        expert_imbalance=arguments.expert_imbalance,
        allow_unknown=arguments.allow_unknown,
        **strategy_details(arguments),
        **answers_of(arguments),
    )


def _size(text: str) -> int:
    if not (text.isdecimal() and text.isascii()) or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive whole number")
    return int(text)


def _ratio(text: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number") from error
