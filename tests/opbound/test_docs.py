"""What docs/ shows is what happens, what it names exists, and the site builds without a warning."""

import html
import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

sys.path.insert(0, str(Path(__file__).parent))

from shown_commands import Page

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
_PAGES = sorted(DOCS.rglob("*.md"))
_SLOW = "<!-- slow -->\n"
_NEEDS = {"hf:": "transformers", "import torch": "torch", ".to_dataframe": "pandas"}


def _marked(path: Path):
    # A page that takes long says so in its last line.
    slow = path.read_text(encoding="utf-8").endswith(_SLOW)
    marks = [pytest.mark.slow] if slow else []
    return pytest.param(path, id=str(path.relative_to(DOCS)), marks=marks)


SHOWING = [
    _marked(path)
    for path in _PAGES
    if re.search(r"^```(console|python)$", path.read_text(encoding="utf-8"), re.MULTILINE)
]


@pytest.mark.parametrize("path", SHOWING)
def test_commands_print_what_the_page_shows(path, tmp_path, light):
    page = Page(path)
    for sign, module in _NEEDS.items():
        if sign in page.text:
            pytest.importorskip(module)
    for model in light.glob("*.onnx"):
        (tmp_path / model.name.removeprefix("light_")).symlink_to(model)
    page.write_files(tmp_path)
    page.run_commands(tmp_path)
    page.run_python(tmp_path)


def _options_by_command() -> dict[str, set[str]]:
    from opbound.commands import build_parser

    parser = build_parser()
    (commands,) = (a.choices for a in parser._actions if isinstance(a.choices, dict))
    found = {name: set(command.all_options()) for name, command in commands.items()}
    return {**found, "": set(parser.all_options())}


@pytest.mark.parametrize(
    "path",
    [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("[a-z]*/README.md"), *_PAGES],
    ids=lambda path: str(path.relative_to(ROOT)),
)
def test_every_command_and_option_that_is_named_exists(path):
    known = _options_by_command()
    text = path.read_text(encoding="utf-8")
    commands = re.findall(r"\bopbound ([a-z]+)\b([^\n`]*)", "\n".join(_code(text)))
    for command, rest in commands:
        assert command in known, f"opbound {command}"
        unknown = set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", rest)) - known[command]
        assert not unknown, f"opbound {command} has no {unknown}"
    named = set(re.findall(r"`(--[a-z][a-z-]*)", text))
    assert named <= known[""], named - known[""]


def _code(text: str) -> list[str]:
    """Lines of code blocks and spans that begin with opbound."""
    spans = re.findall(r"(?<!`)`(opbound [^`\n]+)`", text)
    return spans + re.findall(r"^(?:\$ | {4})(opbound [^\n]+)$", text, re.MULTILINE)


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> dict[str, str]:
    """The pages of the built site, their text without tags."""
    if importlib.util.find_spec("material") is None:
        pytest.skip("mkdocs-material is not installed: pip install 'opbound[docs]'")
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "-d", folder],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr + done.stdout
    return {
        str(path.relative_to(folder)): path.read_text(encoding="utf-8")
        for path in folder.rglob("*.html")
    }


def _plain(page: str) -> str:
    return html.unescape(re.sub(r"<[^>]+>", "", page))


def test_the_site_loads_nothing_from_a_network(site):
    loads = r"<(?:script|img|iframe|source)[^>]*\ssrc=[\"']?(https?:)?//"
    for name, page in site.items():
        assert not re.search(loads, page), name
        for link in re.findall(r"<link[^>]*>", page):
            if re.search(r"rel=[\"']?(stylesheet|preconnect|preload|icon)", link):
                assert "//" not in link, (name, link)


def _keys(data: object, path: str = "") -> set[str]:
    """Every key path of a hardware file, `[]` for each entry of a list; figures by dtype are one key."""
    if isinstance(data, list) and any(isinstance(entry, dict) for entry in data):
        return {key for entry in data for key in _keys(entry, f"{path}[]")}
    if not isinstance(data, dict) or "value" in data or path == "sources":
        return {path}
    if path.rpartition(".")[2] in ("peak", "efficiency"):
        return {path}
    return {k for key, value in data.items() for k in _keys(value, f"{path}.{key}".lstrip("."))}


def test_the_hardware_reference_has_every_key_of_every_shipped_file(site):
    text = _plain(site["reference/hardware.html"])
    specs = list((ROOT / "costing/hardware_specs").glob("*.yaml"))
    used = {key for path in specs for key in _keys(yaml.safe_load(path.read_text("utf-8")))}
    assert len(specs) > 5
    assert len(used) > 25
    assert {key for key in used if key not in text} == set()


def test_the_reference_has_every_option(site):
    text = _plain(site["reference/cli.html"])
    for command, options in _options_by_command().items():
        _, _, section = text.partition(f"opbound {command}")
        assert {option for option in options if option not in section} == set()


def test_the_reference_has_every_key_of_a_report(site, light):
    import opbound

    report = opbound.analyze(str(light / "light_squeezenet.onnx"), mode="training").to_dict()
    text = _plain(site["reference/report.html"])
    for part in ("model", "hardware", "strategy", "totals", "memory"):
        assert {key for key in report[part] if f"{part}.{key}" not in text} == set()
    assert {key for key in report["operators"][0] if f"operators[].{key}" not in text} == set()


def test_the_reference_has_every_argument_of_analyze(site):
    import inspect

    import opbound

    text = _plain(site["reference/api.html"])
    names = inspect.signature(opbound.analyze).parameters
    assert {name for name in names if f"{name}: " not in text} == set()
