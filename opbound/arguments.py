"""The command line's words: what can be typed."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from graph_ir.errors import OpboundError
from opbound._version import __version__
from opbound.hardware_scaling import EXAMPLES, add_scale_options
from opbound.help_text import complete_help
from opbound.model_answers import add_answer_options, answers_of
from opbound.options import (
    BALANCES,
    DEFAULT_HARDWARE,
    DEFAULT_NEW_TOKENS,
    DEFAULT_PROMPT_TOKENS,
    EXECUTION,
    MODES,
    OPTIMIZERS,
    RECOMPUTE,
    ZERO_STAGES,
    Options,
    parallel_options,
    parse_dim,
    parse_stages,
)
from opbound.parser import Parser
from opbound.row_arguments import add_row_options
from opbound.search_arguments import add_search_options
from opbound.strategy_arguments import add_strategy_details, strategy_details

FORMATS = ("table", "json", "csv", "markdown")
REPORT_FORMATS = (*FORMATS, "html", "trace")

_EXAMPLES = """\
examples:
  opbound analyze model.onnx --hardware a100-sxm-80gb --batch 32
  opbound analyze hf:llama-3.1-8b --mode generation --prompt-tokens 1000 --new-tokens 200
  opbound analyze hf:gpt3-175b --mode training --batch 64 --parallel dp=1,tp=8,pp=8 --dtype bf16
  opbound analyze my_package.models:build --format json -o report.json
"""

_MODEL_HELP = """\
an ONNX file; hf:NAME or hf:path/to/config.json, an architecture from its config, without weights;
diffusers:NAME or diffusers:path/to/config.json, a diffusion model from its config;
package.module:factory, which imports and calls your code; or an exported program (.pt2)"""


def build_parser() -> Parser:
    """The parser of the whole command line."""
    parser = Parser(
        prog="opbound",
        description="Says what limits every operator of a model on the hardware it will run on.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"opbound {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    _add_analyze(commands)
    _add_graph(commands)
    _add_annotate(commands)
    _add_hardware(commands)
    _add_validate(commands)
    from opbound.commands import add_commands

    add_commands(commands)
    complete_help(parser, commands.choices)
    return parser


def add_analysis(parser: argparse.ArgumentParser) -> None:
    """Adds all options of an analysis but the model."""
    _add_device(parser)
    _add_mode(parser)
    _add_sizes(parser)
    _add_strategy(parser)


def _add_analyze(commands: argparse._SubParsersAction[Parser]) -> None:
    parser = commands.add_parser(
        "analyze",
        help="report of every operator: cost, bound, time",
        description="Imports a model, splits it over devices, prices every operator and says what "
        "bounds it.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    _add_model(parser)
    _add_sizes(parser)
    _add_strategy(parser)
    add_search_options(parser.add_argument_group("search"))
    _add_output(parser)


def _add_graph(commands: argparse._SubParsersAction[Parser]) -> None:
    parser = commands.add_parser(
        "graph",
        help="the operator graph that is priced, as text",
        description="Prints the operator graph of one micro-batch: every node with its results' "
        "types, repeated layers once. With --parallel the graph of one rank per pipeline stage.",
        allow_abbrev=False,
    )
    _add_model(parser)
    _add_sizes(parser)
    _add_strategy(parser)
    group = parser.add_argument_group("output")
    add_file(group)
    _add_rows(group, "one node per operator")


def _add_annotate(commands: argparse._SubParsersAction[Parser]) -> None:
    parser = commands.add_parser(
        "annotate",
        help="an ONNX file with the figures on every node, for Netron",
        description="Analyses an ONNX file on one device and writes a copy in which every node "
        "carries its time, bound, FLOPs and bytes as metadata. Viewers show it, runtimes skip it.",
        allow_abbrev=False,
    )
    parser.add_argument("model", metavar="MODEL", help="an ONNX file")
    parser.add_argument(
        "-o", "--output", metavar="FILE", required=True, help="the copy, whole or not at all"
    )
    _add_device(parser)
    _add_sizes(parser, generation=False)
    _add_execution(parser.add_argument_group("execution"))
    # One device runs the model once: what `options_of` reads besides.
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


def _add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help=_MODEL_HELP)
    _add_device(parser)
    _add_mode(parser)


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


def _add_sizes(parser: argparse.ArgumentParser, *, generation: bool = True) -> None:
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
        help="data (dp), tensor (tp), pipeline (pp), context (cp) and expert (ep) parallelism; "
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


def _add_output(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("output")
    add_format(group, REPORT_FORMATS)
    add_file(group)
    add_row_options(group)
    _add_rows(group, "one row per operator")


def add_file(group: argparse._ActionsContainer) -> None:
    """Adds the option that names the file to write."""
    group.add_argument("-o", "--output", metavar="FILE", help="write there, whole or not at all")


def add_format(group: argparse._ActionsContainer, formats: Sequence[str]) -> None:
    """Adds the option that chooses the form, and a short one for programs."""
    group.add_argument("--format", choices=formats, default=formats[0], help="default: %(default)s")
    if "json" in formats:
        group.add_argument(
            "--json",
            dest="format",
            action="store_const",
            const="json",
            default=argparse.SUPPRESS,
            help="short for --format json",
        )


def add_quiet(group: argparse._ActionsContainer) -> None:
    """Adds the option that leaves the exit code to speak."""
    group.add_argument(
        "-q",
        "--quiet",
        action="store_true",
        help="print nothing but errors; a file given with -o is written",
    )


def _add_rows(group: argparse._ArgumentGroup, every: str) -> None:
    rows = group.add_mutually_exclusive_group()
    rows.add_argument(
        "--group",
        dest="every_node",
        action="store_false",
        default=False,
        help="the same operator of repeated layers once, with a count (the default)",
    )
    rows.add_argument("--every-node", dest="every_node", action="store_true", help=every)


def _add_hardware(commands: argparse._SubParsersAction[Parser]) -> None:
    parser = commands.add_parser(
        "hardware",
        help="list the devices, show one with its sources, or scale one to another technology",
        description="Without a name: the shipped devices and clusters. With one: every figure of "
        "it and where the figure comes from. With `scale BASE`: its file in another technology.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("name", nargs="?", metavar="NAME|FILE|scale")
    add_scale_options(parser)


def _add_validate(commands: argparse._SubParsersAction[Parser]) -> None:
    parser = commands.add_parser(
        "validate",
        help="predictions beside published measurements, with errors",
        description="Runs published measurements through the whole program and prints predicted "
        "beside measured. Takes some minutes, with progress.",
        allow_abbrev=False,
    )
    group = parser.add_argument_group("output")
    add_format(group, FORMATS)
    add_file(group)


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
