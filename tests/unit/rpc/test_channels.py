"""Every channel that Sluice opens has Sluice's options: no proxy of the environment stands between two services."""

import ast
from pathlib import Path

from sluice.addresses import joined
from sluice.limits import CHANNEL_OPTIONS

ROOT = Path(__file__).parents[3]


def channels_without_options() -> list[str]:
    """Calls of grpc's own functions, but for those that name CHANNEL_OPTIONS, or options made of them, in their file."""
    found = []
    for folder in ("sluice", "services", "benchmarks", "scripts"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            text = path.read_text(encoding="utf-8")
            if "secure_channel" not in text:
                continue  # parsing takes most of the time
            for node in ast.walk(ast.parse(text)):
                if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                    opens = node.func.attr in ("insecure_channel", "secure_channel")
                    if opens and (len(node.args) + len(node.keywords) < 2 or "CHANNEL_OPTIONS" not in text):
                        found.append(f"{path.relative_to(ROOT)}:{node.lineno}")
    return found


def test_every_channel_has_the_options_that_all_channels_have() -> None:
    assert channels_without_options() == []
    assert dict(CHANNEL_OPTIONS)["grpc.enable_http_proxy"] == 0


def test_an_ipv6_address_stands_in_brackets_before_its_port() -> None:
    assert [joined(host, 1) for host in ("h", "127.0.0.1", "::1", "[::1]")] == [
        "h:1",
        "127.0.0.1:1",
        "[::1]:1",
        "[::1]:1",
    ]
