"""`--launches`: what a model gains where its launches are recorded and replayed."""

import re

import opbound


def test_a_small_model_is_bound_by_the_host_that_issues_it(light):
    model = str(light / "light_squeezenet.onnx")
    issued = opbound.analyze(model, launches="issued")
    replayed = opbound.analyze(model)
    assert issued.strategy.launches == "issued"
    assert replayed.strategy.launches == "replayed"
    assert issued.totals.step_time_s > replayed.totals.step_time_s
    assert "host" in issued.totals.time_s.by_bound
    assert "host" not in replayed.totals.time_s.by_bound
    assert "the host" in issued.totals.conclusions[0]
    # Without the host's limit it is the replayed model.
    without = re.search(r"would take ([\d.]+) µs", issued.totals.conclusions[1])
    assert without is not None
    assert abs(float(without[1]) / (replayed.totals.step_time_s * 1e6) - 1) < 0.01
    assert sum(row.time_s for row in issued.operators) > 0.999 * issued.totals.step_time_s


def test_long_kernels_hide_the_host(light):
    model = str(light / "light_resnet50.onnx")
    issued, replayed = (
        opbound.analyze(model, batch=256, launches=launches) for launches in ("issued", "replayed")
    )
    assert issued.totals.step_time_s < 1.001 * replayed.totals.step_time_s
