"""What starting costs: heavy libraries are imported only by the work that needs them."""

import subprocess
import sys

HEAVY = ("numpy", "onnx", "torch", "transformers", "networkx", "yaml", "rich", "tabulate")


def modules_after(code: str) -> set[str]:
    listed = f"{code}\nimport sys; print('\\n'.join(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", listed], capture_output=True, text=True, check=True
    )
    return set(done.stdout.split())


def test_importing_opbound_imports_nothing_heavy():
    assert modules_after("import opbound").isdisjoint(HEAVY)


def test_help_imports_nothing_heavy():
    code = "from opbound.commands import build_parser; build_parser().format_help()"
    assert modules_after(code).isdisjoint(HEAVY)


def test_reports_import_nothing_heavy():
    assert modules_after("import reports").isdisjoint(HEAVY)


def test_help_and_version(opbound):
    process = opbound("--help")
    assert process.returncode == 0
    assert "analyze" in process.stdout
    assert opbound("analyze", "--help").stdout.count("--") > 25
    import opbound as package

    assert opbound("--version").stdout == f"opbound {package.__version__}\n"
