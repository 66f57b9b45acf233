"""A report file is whole or not there."""

import pytest

from graph_ir.errors import OpboundError
from opbound.output import Output


class WentWrongError(Exception):
    """Stands for any failure of the work."""


def test_a_file_appears_at_the_end(tmp_path):
    path = tmp_path / "report.txt"
    with Output(str(path)) as output:
        output.write("one ")
        assert not path.exists()
        output.write("two")
    assert path.read_text(encoding="utf-8") == "one two"
    assert list(tmp_path.iterdir()) == [path]


def test_a_failure_leaves_nothing(tmp_path):
    def work():
        with Output(str(tmp_path / "report.txt")) as output:
            output.write("half")
            raise WentWrongError

    with pytest.raises(WentWrongError):
        work()
    assert list(tmp_path.iterdir()) == []


def test_a_link_keeps_pointing(tmp_path):
    target, link = tmp_path / "target", tmp_path / "link"
    target.write_text("old", encoding="utf-8")
    link.symlink_to(target)
    with Output(str(link)) as output:
        output.write("new")
    assert link.is_symlink()
    assert target.read_text(encoding="utf-8") == "new"


def test_a_device_is_written_as_it_is():
    with Output("/dev/null") as output:
        output.write("gone")


def test_a_full_device_is_an_error():
    def work():
        with Output("/dev/full") as output:
            output.write("x" * 1_000_000)

    with pytest.raises(OpboundError, match="/dev/full"):
        work()
