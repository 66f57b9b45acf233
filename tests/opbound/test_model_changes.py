"""What people do to models: each change is told from none, and named for what it is."""

import importlib.util
import json
from pathlib import Path

import onnx
import pytest

from opbound.diffing import difference_of
from opbound.options import Options

_SPEC = importlib.util.spec_from_file_location(
    "model_changes", Path(__file__).with_name("model_changes.py")
)
changes = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(changes)


def difference(base, new, folder, **options):
    for name, model in (("base", base), ("new", new)):
        onnx.save(model, folder / f"{name}.onnx")
    paths = (str(folder / "base.onnx"), str(folder / "new.onnx"))
    return difference_of(*paths, Options(**options), lambda _: None)


@pytest.mark.parametrize("case", changes.CASES, ids=lambda case: case.name)
@pytest.mark.filterwarnings("ignore")
def test_a_change_is_named_for_what_it_is(case, tmp_path):
    base = case.base()
    found = difference(base, case.new(base, tmp_path) if case.folder else case.new(), tmp_path)
    told = [finding.kind for finding in found.findings]
    assert found.same_work == case.same, told
    assert case.told in told if case.told else not told


@pytest.mark.parametrize("case", changes.CASES, ids=lambda case: case.name)
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_the_same_change_is_found_where_every_name_changed_too(case, tmp_path):
    base = case.base()
    new = case.new(base, tmp_path) if case.folder else case.new()
    found = difference(base, changes.renamed(new), tmp_path)
    told = [finding.kind for finding in found.findings]
    assert found.same_work == case.same, told
    # All nodes in another order and with other names: nothing tells that they have moved.
    assert case.told in told or case.told in ("", "moved", "input-renamed")


@pytest.mark.parametrize("case", changes.CASES, ids=lambda case: case.name)
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_backwards_the_verdict_is_the_same(case, tmp_path):
    base = case.base()
    new = case.new(base, tmp_path) if case.folder else case.new()
    there = difference(base, new, tmp_path)
    back = difference(new, base, tmp_path)
    assert there.same_work == back.same_work
    assert [t.change for t in there.totals] == pytest.approx([-t.change for t in back.totals])
    assert there.count("added") == back.count("removed")


def test_a_lost_fusion_is_none_where_a_compiler_fuses(tmp_path):
    base, new = changes.encoder(), changes.encoder(norm="parts")
    eager = difference(base, new, tmp_path)
    assert not eager.same_work
    assert "same-when-fused" in [finding.kind for finding in eager.findings]
    assert difference(base, new, tmp_path, execution="fused").same_work


def test_a_layer_more_is_told_with_its_number(tmp_path):
    base, new = changes.encoder(layers=3), changes.encoder(layers=5)
    (told,) = [f.text for f in difference(base, new, tmp_path).findings if f.kind == "layers-added"]
    assert told.startswith("2 repeated layers added: 46 operators")


def test_the_command_says_it_by_its_exit_code_and_as_json(opbound, tmp_path):
    onnx.save(changes.encoder(), tmp_path / "a.onnx")
    onnx.save(changes.encoder(width=64), tmp_path / "b.onnx")
    onnx.save(changes.renamed(changes.encoder()), tmp_path / "c.onnx")
    same = opbound("diff", "a.onnx", "c.onnx", "--quiet")
    assert (same.returncode, same.stdout, same.stderr) == (0, "", "")
    differs = opbound("diff", "a.onnx", "b.onnx", "--json")
    assert differs.returncode == 1
    plain = json.loads(differs.stdout)
    assert plain["same_work"] is False
    assert "wider" in {finding["kind"] for finding in plain["findings"]}
    trouble = opbound("diff", "a.onnx", "d.onnx")
    assert trouble.returncode == 2
    assert trouble.stderr.count("\n") == 1


def test_a_saved_report_is_compared_with_a_model_analysed_alike(opbound, tmp_path):
    onnx.save(changes.encoder(batch="batch"), tmp_path / "a.onnx")
    sizes = ("--batch", "4", "--hardware", "a100-sxm-80gb")
    assert opbound("analyze", "a.onnx", *sizes, "--json", "-o", "a.json").returncode == 0
    found = opbound("diff", "a.json", "a.onnx", "--json")
    assert found.returncode == 0, found.stdout
    plain = json.loads(found.stdout)
    assert plain["new"]["hardware"] == "a100-sxm-80gb"
    assert {t["change"] for t in plain["totals"].values()} == {0}
    other = opbound("diff", "a.json", "a.onnx", "--hardware", "h100-sxm-80gb", "--json")
    assert other.returncode == 0
    assert "hardware" in {finding["kind"] for finding in json.loads(other.stdout)["findings"]}


def test_a_report_of_an_older_schema_is_compared_by_what_it_says(tmp_path):
    onnx.save(changes.cnn(), tmp_path / "m.onnx")
    from opbound.analysis import run

    report = run(str(tmp_path / "m.onnx"), Options()).to_dict()
    report["schema_version"] = "1.0"
    report["model"].pop("inputs")
    report["model"].pop("outputs")
    for row in report["operators"]:
        row.pop("attributes")
    (tmp_path / "old.json").write_text(json.dumps(report), encoding="utf-8")
    paths = (str(tmp_path / "old.json"), str(tmp_path / "m.onnx"))
    assert difference_of(*paths, Options(), lambda _: None).same_work


@pytest.mark.slow
def test_two_models_of_ten_thousand_nodes_are_compared_in_five_seconds(opbound, tmp_path):
    import resource

    base = changes.encoder(layers=370)
    assert len(base.graph.node) > 9_900
    onnx.save(base, tmp_path / "base.onnx")
    onnx.save(changes.renamed(changes.encoder(layers=370, wide_layer=150)), tmp_path / "new.onnx")
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    found = opbound("diff", "base.onnx", "new.onnx", "--json")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert found.returncode == 1
    assert next(f["kind"] for f in json.loads(found.stdout)["findings"]) == "wider"
    spent_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    assert spent_s < 5


def test_an_operator_that_is_wider_and_of_another_dtype_is_told_as_both(tmp_path):
    found = difference(changes.encoder(), changes.encoder(ff=96, dtype="float16"), tmp_path)
    assert {"narrower-dtype", "wider"} <= {finding.kind for finding in found.findings}


def test_another_model_is_no_lost_fusion(light):
    paths = (str(light / "light_inception_v1.onnx"), str(light / "light_inception_v2.onnx"))
    kinds = {finding.kind for finding in difference_of(*paths, Options()).findings}
    assert not kinds & {"lost-fusion", "same-when-fused"}
