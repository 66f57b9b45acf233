"""`opbound graph` as a process: the graph that is priced, readable and without control characters."""

import re

import onnx
import pytest


def graph(opbound, *arguments):
    process = opbound("graph", *arguments)
    assert process.returncode == 0, process.stderr
    assert process.stderr == ""
    return process.stdout


def test_every_node_of_a_small_model(opbound, relu_model):
    assert graph(opbound, relu_model) == (
        "graph relu: 1 node\n  input  %x: float32[4,8]\n  %y: float32[4,8] = relu(%x)\nreturn %y\n"
    )


def test_a_training_graph_says_the_pass(opbound, light):
    text = graph(opbound, light / "light_squeezenet.onnx", "--mode", "training")
    order = [text.index(f"\n{name}:\n") for name in ("backward", "optimizer")]
    assert order == sorted(order)
    assert re.search(r"conv\(.*groups=1 padding=\[1,1\]", text)
    assert re.search(r"^  parameter  %conv1_w_0: float32\[64,3,3,3\]$", text, re.MULTILINE)


def test_layers_are_folded_unless_asked(opbound):
    pytest.importorskip("transformers")
    folded = graph(opbound, "hf:gpt2", "--sequence", 16)
    assert "  repeat 12 times, names in transformer.h.[0-11]:\n" in folded
    assert "    %.attn.c_attn: bfloat16[16,2304] = matmul(" in folded
    assert "%transformer.h.[0-11].mlp.c_fc.weight: bfloat16[768,3072] x12\n" in folded
    whole = graph(opbound, "hf:gpt2", "--sequence", 16, "--every-node")
    assert "repeat" not in whole
    runs = re.search(r"(\d+) nodes, (\d+) with repetitions", folded)
    assert runs
    assert f"graph gpt2: {runs[2]} nodes\n" in whole
    assert whole.count(" matmul(") == 12 * folded.count(" matmul(")


def test_fused_execution_shows_the_operators_that_it_recognises(opbound, relu_model):
    model = onnx.load(relu_model)
    # x sigmoid(x), written out.
    del model.graph.node[:]
    for op, inputs, output in (("Sigmoid", ["x"], "s"), ("Mul", ["x", "s"], "y")):
        model.graph.node.append(onnx.helper.make_node(op, inputs, [output]))
    onnx.save(model, relu_model)
    assert "= silu(" not in graph(opbound, relu_model)
    assert "= silu(%x)" in graph(opbound, relu_model, "--execution", "fused")


def test_one_rank_per_stage(opbound):
    pytest.importorskip("transformers")
    text = graph(opbound, "hf:gpt2", "--sequence", 16, "--parallel", "tp=2,pp=4")
    # The middle stages hold the same number of layers, so they run the same graph.
    titles = re.findall(r"^one rank of 8, (.*)$", text, re.MULTILINE)
    assert titles[0] == "stage 0 of 4"
    assert titles[-1] == "stage 3 of 4"
    first = text.split("one rank of 8")[1]
    # Two all-reduces in each layer.
    assert len(re.findall(r"= all_reduce\(.*axis='tp' group_size=2", first)) >= 2
    assert "send(" in first
    assert "matmul(%.attn.c_attn.reshape, %.attn.c_attn.weight)" in first


@pytest.mark.slow
def test_generation_has_two_graphs(opbound):
    pytest.importorskip("transformers")
    text = graph(opbound, "hf:gpt2", "--mode", "generation", "--prompt-tokens", 8)
    assert text.startswith("prefill of 8 tokens\ngraph gpt2")
    assert "\n\ndecode step with 72 tokens in the cache\ngraph gpt2" in text


def test_a_file_is_written(opbound, relu_model, tmp_path):
    assert graph(opbound, relu_model, "-o", "graph.txt") == ""
    assert (tmp_path / "graph.txt").read_text(encoding="utf-8").startswith("graph relu")


def test_names_are_shown_without_control_characters(opbound, relu_model):
    model = onnx.load(relu_model)
    model.graph.node[0].output[0] = model.graph.output[0].name = "red\x1b[31m\n"
    onnx.save(model, relu_model)
    text = graph(opbound, relu_model)
    assert "\x1b" not in text
    assert text.endswith("\nreturn %red\\x1b[31m\\n\n")


def test_wrong_input_is_one_line(opbound, relu_model):
    for arguments in (("graph", "missing.onnx"), ("graph", relu_model, "--parallel", "tp=0")):
        process = opbound(*arguments)
        assert process.returncode == 2
        assert process.stderr.count("\n") == 1
        assert process.stdout == ""
