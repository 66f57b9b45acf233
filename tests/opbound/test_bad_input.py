"""Bad input, given to the command line as a process: one line that helps, exit code 2."""

import json

import pytest


def assert_one_line(process, *says):
    assert process.returncode == 2, process.stderr or process.stdout
    assert process.stdout == ""
    assert process.stderr.startswith("opbound: error: ")
    assert process.stderr.count("\n") == 1, process.stderr
    assert "Traceback" not in process.stderr
    assert "internal error" not in process.stderr
    for text in says:
        assert text in process.stderr, process.stderr


def test_missing_file(opbound):
    assert_one_line(opbound("analyze", "missing.onnx"), "missing.onnx")


@pytest.mark.parametrize(
    "content",
    [b"", b"hello", b"\x00" * 64, b"\xff" * 4096, b"PK\x03\x04", b"{}"],
    ids=["empty", "text", "zeros", "ones", "zip", "json"],
)
def test_not_an_onnx_file(opbound, tmp_path, content):
    path = tmp_path / "broken.onnx"
    path.write_bytes(content)
    assert_one_line(opbound("analyze", path), "broken.onnx")


@pytest.mark.parametrize("part", [0.01, 0.3, 0.9])
def test_truncated_file(opbound, tmp_path, light, part):
    whole = (light / "light_resnet50.onnx").read_bytes()
    path = tmp_path / "truncated.onnx"
    path.write_bytes(whole[: int(len(whole) * part)])
    assert_one_line(opbound("analyze", path), "truncated.onnx")


def test_a_folder_is_no_model(opbound, tmp_path):
    assert_one_line(opbound("analyze", tmp_path))


def test_unknown_operator(opbound, custom_model):
    assert_one_line(opbound("analyze", custom_model), "Frobnicate", "odd_one", "--allow-unknown")


def test_unbound_dim(opbound, dynamic_model):
    assert_one_line(opbound("analyze", dynamic_model, "--dim", "width=4"), "height", "--dim")


def test_wrong_dim_name(opbound, dynamic_model):
    process = opbound("analyze", dynamic_model, "--dim", "heigth=4", "--dim", "width=4")
    assert_one_line(process, "heigth", "height")


@pytest.mark.parametrize("text", ["height", "height=", "=4", "height=0", "height=-1", "height=x"])
def test_malformed_dim(opbound, relu_model, text):
    assert_one_line(opbound("analyze", relu_model, "--dim", text), "NAME=INT")


def test_impossible_mesh(opbound, tmp_path):
    pytest.importorskip("transformers")
    config = {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": 256,
        "intermediate_size": 448,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "num_hidden_layers": 2,
        "vocab_size": 1001,
    }
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config), encoding="utf-8")
    process = opbound("analyze", f"hf:{path}", "--sequence", 16, "--parallel", "tp=7")
    assert_one_line(process, "tp", "7", "32")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("tp=0", "tp"),
        ("tp", "'tp'"),
        ("tp=2,tp=4", "twice"),
        ("xp=2", "'xp'"),
        ("", "no axis"),
        ("tp=2.5", "tp=2.5"),
    ],
)
def test_malformed_mesh(opbound, relu_model, text, says):
    assert_one_line(opbound("analyze", relu_model, "--parallel", text), says)


def test_unknown_hardware(opbound, relu_model):
    process = opbound("analyze", relu_model, "--hardware", "h100-sxm-80g")
    assert_one_line(process, "h100-sxm-80g", "did you mean 'h100-sxm-80gb'?")


def test_unknown_hardware_key(opbound, relu_model, tmp_path):
    from costing.hardware_file import SPECS

    text = (SPECS / "h100-sxm-80gb.yaml").read_text(encoding="utf-8")
    path = tmp_path / "mine.yaml"
    path.write_text(text.replace("\nengines:", "\nengine:", 1), encoding="utf-8")
    assert_one_line(
        opbound("analyze", relu_model, "--hardware", path), "mine.yaml", "'engine", "engines"
    )


@pytest.mark.parametrize(
    "content", ["", "[1, 2]", "a: [", "\x00"], ids=["empty", "list", "broken", "binary"]
)
def test_a_hardware_file_that_is_none(opbound, relu_model, tmp_path, content):
    path = tmp_path / "mine.yaml"
    path.write_text(content, encoding="utf-8")
    assert_one_line(opbound("analyze", relu_model, "--hardware", path), "mine.yaml")


def test_hardware_command_with_an_unknown_name(opbound):
    assert_one_line(opbound("hardware", "h200"), "h200")


@pytest.mark.parametrize("place", ["nowhere/report.json", "."])
def test_unwritable_output(opbound, relu_model, tmp_path, place):
    before = sorted(tmp_path.iterdir())
    assert_one_line(opbound("analyze", relu_model, "--format", "json", "-o", place), place)
    assert sorted(tmp_path.iterdir()) == before


def test_a_failure_leaves_the_old_output(opbound, custom_model, tmp_path):
    (tmp_path / "report.json").write_text("old", encoding="utf-8")
    before = sorted(tmp_path.iterdir())
    assert_one_line(opbound("analyze", custom_model, "-o", "report.json"))
    assert (tmp_path / "report.json").read_text(encoding="utf-8") == "old"
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((), "say what to do"),
        (("analyse", "x"), "did you mean 'analyze'?"),
        (("analyze",), "MODEL"),
        (("analyze", "x", "--hardwre", "y"), "did you mean '--hardware'?"),
        (("analyze", "x", "--mode", "trainin"), "did you mean 'training'?"),
        (("analyze", "x", "--zero", "4"), "--zero"),
        (("analyze", "x", "--batch", "0"), "positive whole number"),
        (("analyze", "x", "--batch", "²"), "positive whole number"),
        (("analyze", "x", "--schedule", "1f2b"), "1f1b"),
        (("analyze", "x", "--schedule", "interleaved"), "interleaved:2"),
        (("analyze", "x", "--new-tokens", "5"), "generation"),
        (("analyze", "x", "--optimizer", "sgd"), "training"),
        (("analyze", "x", "--group", "--every-node"), "--every-node"),
        (("analyze", "x", "--dim", "n=1", "--dim", "n=2"), "twice"),
    ],
)
def test_wrong_usage(opbound, arguments, says):
    assert_one_line(opbound(*arguments), says)


def test_an_unknown_dtype(opbound, relu_model):
    assert_one_line(opbound("analyze", relu_model, "--dtype", "bf61"), "bf61", "bf16")


@pytest.mark.parametrize("name", ["hf:lama-2-7b", "hf:missing/config.json", "no.such:factory"])
def test_a_model_that_does_not_exist(opbound, name):
    pytest.importorskip("transformers")
    assert_one_line(opbound("analyze", name), name.split(":")[1].split("/")[0])


def test_an_escape_in_a_file_name_is_not_printed(opbound):
    process = opbound("analyze", "\x1b[31mred.onnx")
    assert_one_line(process, "\\x1b[31mred.onnx")
    assert "\x1b" not in process.stderr


@pytest.mark.parametrize(
    ("model", "says"),
    [
        ("", "name is empty"),
        ("hf:", "hf:NAME"),
        (":factory", "one half is empty"),
        ("broken_code:factory", "SyntaxError"),
        ("good_code:missing", "has no 'missing'"),
        ("good_code:fails", "ZeroDivisionError"),
        ("good_code:number", "returned a int"),
    ],
)
def test_a_model_that_cannot_be_made(opbound, tmp_path, model, says):
    pytest.importorskip("torch")
    (tmp_path / "broken_code.py").write_text("def factory(:\n", encoding="utf-8")
    code = "number = 3\ndef fails():\n    return 1 / 0\n"
    (tmp_path / "good_code.py").write_text(code, encoding="utf-8")
    assert_one_line(opbound("analyze", model), says)


def test_an_architecture_has_no_named_dims(opbound):
    assert_one_line(opbound("analyze", "hf:gpt2", "--dim", "width=4"), "width", "--batch")


def test_an_empty_output_name(opbound, relu_model):
    assert_one_line(opbound("analyze", relu_model, "-o", ""), "-o")
