"""Where in the user's model an ONNX node comes from, as far as the exporter noted it.

Three habits are known: the TorchScript exporter writes the module path into the node's name
(`/layer1/layer1.0/conv1/Conv`), the dynamo exporter into the node's metadata
(`pkg.torch.onnx.name_scopes`), and all of them name weights after modules
(`layer1.0.conv1.weight`).
"""

from __future__ import annotations

import ast
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from onnx import NodeProto

_SCOPES_KEY = "pkg.torch.onnx.name_scopes"
_OWNED = re.compile(
    r"(?P<module>.+)\.(weight|bias|running_mean|running_var|gamma|beta|kernel|scale|in_proj_\w+)"
    # Caffe2's habit: res2_0_branch2a_w_0, res2_0_branch2a_bn_s_0.
    r"|(?P<layer>.+?)_(bn_)?(w|b|s|rm|riv)_\d+"
)
_MACHINE_MADE = re.compile(r"|[a-z]?\d+")


def module_of(node: NodeProto) -> str:
    """Dotted module path of a node, empty if the file does not tell."""
    for entry in node.metadata_props:
        if entry.key == _SCOPES_KEY:
            return _from_scopes(entry.value)
    return module_from_name(node.name)


def module_from_name(name: str) -> str:
    """The module path in a node name such as `/layer1/layer1.0/conv1/Conv`.

    >>> module_from_name("/layer1/layer1.0/conv1/Conv")
    'layer1.0.conv1'
    """
    if "/" not in name:
        return ""
    path = ""
    for part in name.strip("/").split("/")[:-1]:
        # A container repeats its own name in its children's: layer1, then layer1.0.
        path = part if not path or part.startswith(f"{path}.") else _joined(path, part)
    return path


def _joined(path: str, part: str) -> str:
    head, _, last = path.rpartition(".")
    if part.startswith(f"{last}."):
        return f"{head}.{part}" if head else part
    return f"{path}.{part}"


def _from_scopes(text: str) -> str:
    """The innermost module in a list such as ['', 'layer1', 'layer1.0.conv1', 'conv2d']."""
    try:
        scopes = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return ""
    return str(scopes[-2]) if isinstance(scopes, list) and len(scopes) >= 2 else ""


def module_from_weight(name: str) -> str:
    """The module that owns a weight, by the weight's name.

    >>> module_from_weight("layer1.0.conv1.weight")
    'layer1.0.conv1'
    """
    found = _OWNED.fullmatch(name)
    return (found["module"] or found["layer"]) if found else ""


def name_of(node: NodeProto) -> str:
    """What to call a node: its name, or its first result's where the name is only a number."""
    # protobuf hands out what is no UTF-8 as bytes.
    name = str(node.name)
    if not _MACHINE_MADE.fullmatch(name):
        return name
    result = str(next((output for output in node.output if output), ""))
    if not _MACHINE_MADE.fullmatch(result):
        return result
    return f"{node.op_type}_{result.lstrip('abcdefghijklmnopqrstuvwxyz')}"
