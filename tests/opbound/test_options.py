"""Options: the forms that are read, and what contradicts itself."""

import inspect

import pytest

import opbound
from graph_ir.errors import OpboundError
from opbound.arguments import options_of
from opbound.commands import build_parser
from opbound.options import Options, parse_dim, parse_parallel


def test_parallel():
    assert parse_parallel("dp=2,tp=8, pp=4") == {"dp": 2, "tp": 8, "pp": 4}
    assert Options(parallel=parse_parallel("dp=2,tp=8")).devices == 16
    assert Options().devices == 1


def test_a_dim_name_may_hold_an_equals_sign():
    assert parse_dim("height=640") == ("height", 640)
    assert parse_dim("a=b=3") == ("a=b", 3)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"mode": "train"}, "training"),
        ({"zero": 7}, "zero"),
        ({"batch": 0}, "batch=0"),
        ({"batch": 2.0}, "batch=2.0"),
        ({"sequence": True}, "sequence"),
        ({"dims": {"n": -1}}, "dim n"),
        ({"parallel": {"tp": 0}}, "tp=0"),
        ({"parallel": {"ttp": 2}}, "did you mean 'tp'"),
        ({"schedule": "zigzag"}, "gpipe"),
        ({"schedule": "interleaved:0"}, "interleaved:2"),
        ({"recompute": "full"}, "training"),
        ({"prompt_tokens": 8}, "generation"),
        ({"execution": "lazy"}, "eager"),
        ({"launches": "lazy"}, "replayed"),
    ],
)
def test_what_cannot_be(given, says):
    with pytest.raises(OpboundError, match=says):
        Options(**given)


def test_the_command_line_and_python_have_the_same_options():
    """Every keyword of `analyze` is an option and the other way round; defaults agree."""
    python = inspect.signature(opbound.analyze).parameters
    line = options_of(build_parser().parse_args(["analyze", "model.onnx"]))
    # `auto` is a way to write `parallel`.
    names = set(Options.__slots__) - {"auto"}
    assert set(python) - {"model", "example_inputs"} == names
    defaults = {name: python[name].default for name in names}
    mappings = ("dims", "parallel", "trip_counts", "branches", "values", "input_shapes")
    assert line == Options(**(defaults | {name: defaults[name] or {} for name in mappings}))


def test_all_options_reach_the_analysis():
    line = build_parser().parse_args(
        [
            *("analyze", "m", "--hardware", "a100-sxm-80gb", "--mode", "training"),
            *("--batch", "8", "--sequence", "128", "--dim", "a=1", "--dim", "b=2"),
            *("--dtype", "bf16", "--parallel", "dp=2,tp=4,pp=2", "--sequence-parallel"),
            *("--zero", "2", "--microbatch", "2", "--schedule", "interleaved:3"),
            *("--recompute", "selective", "--optimizer", "sgd", "--execution", "fused"),
            *("--top", "5", "--every-node", "--format", "csv", "-o", "out", "--allow-unknown"),
        ]
    )
    assert options_of(line) == Options(
        hardware="a100-sxm-80gb",
        mode="training",
        batch=8,
        sequence=128,
        dims={"a": 1, "b": 2},
        dtype="bf16",
        parallel={"dp": 2, "tp": 4, "pp": 2},
        sequence_parallel=True,
        zero=2,
        microbatch=2,
        schedule="interleaved:3",
        recompute="selective",
        optimizer="sgd",
        execution="fused",
        allow_unknown=True,
    )
    assert (line.top, line.every_node, line.format, line.output) == (5, True, "csv", "out")


def test_generation_options():
    line = ["analyze", "m", "--mode", "generation", "--prompt-tokens", "9", "--new-tokens", "3"]
    options = options_of(build_parser().parse_args(line))
    assert (options.prompt_tokens, options.new_tokens) == (9, 3)
