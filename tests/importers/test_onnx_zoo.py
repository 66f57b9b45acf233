"""Foreign ONNX files: FLOPs of contractions beside counts from what onnxruntime really ran."""

import csv
import json

import pytest

from graph_ir.errors import OpboundError
from importers import load

# The reference leaves these fused contractions out of its count.
BEYOND_THE_REFERENCE = {"DeformConv", "MultiHeadAttention"}
# Loops that the data ends.
TRIPS = {"tensorrt__loop.onnx": {"while_loop": 3}}


def rows(zoo):
    with (zoo / "INDEX.csv").open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_contractions_equal_the_reference_count(zoo, contraction_flops):
    import onnx

    wrong, checked = [], 0
    for row in rows(zoo):
        if not row["reference_macs"]:
            continue
        path = zoo / row["file"]
        dims = json.loads(row["reference_dims"] or "{}")
        graph = load(path, dims=dims, trip_counts=TRIPS.get(row["file"])).graph
        flops, expected = contraction_flops(graph), 2 * int(row["reference_macs"])
        checked += 1
        if flops == expected:
            continue
        kinds = {n.op_type for n in onnx.load(path, load_external_data=False).graph.node}
        if not (kinds & BEYOND_THE_REFERENCE and flops > expected):
            wrong.append((row["file"], flops, expected))
    assert not wrong
    assert checked >= 50


def test_every_file_imports_or_says_in_one_line_why_not(zoo):
    imported, messages = 0, []
    for row in rows(zoo):
        try:
            model = load(zoo / row["file"], dims=json.loads(row["reference_dims"] or "{}"))
        except OpboundError as error:
            messages.append(str(error))
            continue
        imported += 1
        assert len(model.sha256) == 64
        for node in model.graph.nodes:
            assert node.flops >= 0
            assert node.equation.sizes is not None
            assert node.bytes_read >= 0
    assert imported >= 64
    assert not [m for m in messages if "\n" in m or len(m) > 400]


@pytest.mark.parametrize(
    ("file", "options", "flops"),
    [
        # Static twins and dynamic files bound late give the same count.
        (
            "libfacedetection.train__yunet_n_dynamic.onnx",
            {"batch": 1, "dims": {"height": 640, "width": 640}},
            2 * 542_393_600,
        ),
        # Twice the image's sides, four times the products.
        (
            "libfacedetection.train__yunet_n_dynamic.onnx",
            {"batch": 1, "dims": {"height": 1280, "width": 1280}},
            8 * 542_393_600,
        ),
        ("vespa__dummy_transformer.onnx", {"batch": 1, "sequence": 16}, 2 * 66_560),
    ],
)
def test_dims_bound_by_role_and_by_name(zoo, contraction_flops, file, options, flops):
    assert contraction_flops(load(zoo / file, **options).graph) == flops


def test_both_rates_of_a_recurrent_network_in_branches(zoo, contraction_flops):
    """Half-precision weights and an If around everything: the same products in both files."""
    half = load(zoo / "silero-vad__silero_vad_half.onnx", batch=1, sequence=512)
    dims = {"input.0": 1, "input.1": 512, "state.1": 1}
    full = load(zoo / "silero-vad__silero_vad.onnx", dims=dims)
    assert contraction_flops(half.graph) == contraction_flops(full.graph) > 1_000_000
    assert any("branch" in note for note in full.notes)
