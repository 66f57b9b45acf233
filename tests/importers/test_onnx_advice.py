"""What an error tells the user to give is what the import needs: followed word by word, it ends."""

import csv
import re

import numpy as np
import pytest

from graph_ir.errors import DimensionError, OpboundError
from importers import load

ROUNDS = 12
SIZE = 16


def follow(message, given):
    """Adds what a message asks for to the arguments of `load`; whether there was anything new."""
    dims = re.findall(r"--dim '(.+?)=INT'", message)
    inputs = re.findall(r"--input '(.+?)=SHAPE', for example ([\dx]+)", message)
    trips = re.findall(r"--trip-count '(.+?)=N'", message)
    values = re.findall(r"--value '(.+?)=N'", message)
    new = False
    for kind, found in (
        ("dims", dict.fromkeys(dims, SIZE)),
        ("input_shapes", {n: tuple(map(int, s.split("x"))) for n, s in inputs}),
        ("trip_counts", dict.fromkeys(trips, 3)),
        ("values", {name: [2] for name in values}),
    ):
        for name, value in found.items():
            new |= name not in given[kind]
            given[kind].setdefault(name, value)
    return new


def advised(path):
    """Imports a file by doing what the errors say; (what was given, the last error or None)."""
    given = {"dims": {}, "input_shapes": {}, "trip_counts": {}, "values": {}}
    failure = None
    for _ in range(ROUNDS):
        try:
            load(path, **given)
        except DimensionError as error:
            failure = error
            if not follow(str(error), given):
                break
        except OpboundError as error:
            return given, error
        else:
            return given, None
    return given, failure


def rows(zoo):
    with (zoo / "INDEX.csv").open(encoding="utf-8") as file:
        return [r for r in csv.DictReader(file) if r["reference_dims"] not in ("", "{}")]


def test_advice_is_enough(zoo):
    bad = []
    for row in rows(zoo):
        given, error = advised(zoo / row["file"])
        if isinstance(error, DimensionError):
            bad.append((row["file"], given, str(error)))
        assert any(given.values()), row["file"]
    assert not bad


IMAGE = "m (float[1, 3, 8, 8] x, "
MATRIX = "m (float[2, 8] x, "
RESULT = ") => (float[a, b] y) { y = "


@pytest.mark.parametrize(
    ("text", "asked"),
    [
        ("m (float[N, K] x) => (float[N, K] y) { y = Relu (x) }", "N K"),
        (f"{MATRIX}int64[2] s, int64[2] e{RESULT} Slice (x, s, e) }}", "y.0 y.1"),
        (f"{MATRIX}int64[2] r{RESULT} Tile (x, r) }}", "y.0 y.1"),
        (f"{MATRIX}int64[4] p{RESULT} Pad (x, p) }}", "y.0 y.1"),
        # A dim that is not 1 cannot be expanded: nothing is open.
        (f"{MATRIX}int64[2] s{RESULT} Expand (x, s) }}", ""),
        ("m (int64[1] s) => (float[a] y) { y = ConstantOfShape (s) }", "y.0"),
        ("m (int64[4] i, int64 d, float[2] v) => (float[4, d] y) { y = OneHot (i, d, v) }", "y.1"),
        (f"{IMAGE}float[4] s) => (float[a, b, c, d] y) {{ y = Resize (x, , s) }}", "y.0 y.1 y.2 y.3"),
        # What the others leave is not asked for.
        ("m (float[2, 48] x, int64[2] s) => (float[a, b] y) "
         "{ p, q = Split <axis = 1> (x, s) y = Relu (q) }", "p.1"),
        ("m (float[2, 128] x, int64[2] s) => (float[a, b] y) { y = Reshape (x, s) }", "y.0"),
        ("m (float[batch, seq, 8] x) => (float[a, 8] y) { s = Shape <start = 2> (x) "
         "m = Concat <axis = 0> (rest, s) y = Reshape (x, m) }", "batch seq"),
    ],
)  # fmt: skip
def test_what_is_open_is_asked_for_and_no_more(onnx_model, text, asked):
    weights = {"rest": np.asarray([-1])} if "rest" in text else {}
    given, error = advised(onnx_model(text, weights=weights))
    assert error is None
    assert given["dims"] == dict.fromkeys(asked.split(), SIZE)


def test_a_leading_dim_without_a_name_may_be_the_batch(onnx_model):
    path = onnx_model("m (float[None, 3] x) => (float[None, 3] y) { y = Relu (x) }")
    with pytest.raises(DimensionError, match="--batch INT or --dim 'None=INT'"):
        load(path)
