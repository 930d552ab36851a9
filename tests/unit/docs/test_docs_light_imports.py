"""What a user imports or types first is light: `import sluice` and `sluice --help` load no tensor library."""

import subprocess
import sys

from tests.unit.docs.pages import ROOT

HEAVY = ("torch", "vllm", "transformers", "pytest", "opentelemetry")

LIGHT = (
    "import sluice",
    "import sluice.client",
    "import sluice.testing.fakes",
    "import sluice.cli.main as m; m.main(['--help'])",
    "import sluice.cli.main as m; m.main(['up', '--help'])",
)

EACH = f"""
import sys
for code in {LIGHT}:
    try:
        exec(code)
    except SystemExit as end:
        assert end.code == 0, code
    found = [name for name in {HEAVY} if name in sys.modules]
    assert not found, (code, found)
"""
"""One process for all: what none of them has loaded, the first of them alone has not loaded either."""


def test_nothing_heavy_is_imported_by_what_is_imported_or_typed_first() -> None:
    subprocess.run([sys.executable, "-c", EACH], cwd=ROOT, check=True, stdout=subprocess.DEVNULL, timeout=60)
