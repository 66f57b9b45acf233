"""`opbound hardware`: every device is listed, every figure of a device has its source."""

import re

import pytest

from costing.hardware_file import list_hardware
from opbound.hardware_page import list_devices, show_device


def test_the_list_names_every_device(opbound):
    process = opbound("hardware")
    assert process.returncode == 0
    assert process.stdout == list_devices()
    for name in list_hardware():
        assert re.search(rf"^{re.escape(name)} ", process.stdout, re.MULTILINE)


@pytest.mark.parametrize("name", list_hardware())
def test_every_figure_has_a_source(name):
    page = show_device(name)
    figures, _, sources = page.partition("\nSources\n")
    numbers = {int(number) for number in re.findall(r"\[(\d+)\]$", figures, re.MULTILINE)}
    stated = {int(number) for number in re.findall(r"^\[(\d+)\] \S", sources, re.MULTILINE)}
    assert numbers == stated
    assert len(numbers) >= 2
    assert "not stated" not in sources


def test_the_users_own_file_is_shown(opbound, tmp_path):
    from costing.hardware_file import SPECS

    text = (SPECS / "l40s.yaml").read_text(encoding="utf-8").replace("name: l40s", "name: mine", 1)
    (tmp_path / "mine.yaml").write_text(text, encoding="utf-8")
    process = opbound("hardware", "mine.yaml")
    assert process.returncode == 0
    assert process.stdout.startswith("mine: ")
