"""What a user imports or types first is light: `import sluice` and `sluice --help` load no tensor library."""

import subprocess
import sys

import pytest

from tests.unit.docs.pages import ROOT

HEAVY = ("torch", "vllm", "transformers", "pytest", "opentelemetry")


@pytest.mark.parametrize(
    "code",
    [
        "import sluice",
        "import sluice.client",
        "import sluice.testing.fakes",
        "import sluice.cli.main as m; r = None\ntry: m.main(['--help'])\nexcept SystemExit as end: assert end.code == 0",
        "import sluice.cli.main as m\ntry: m.main(['up', '--help'])\nexcept SystemExit as end: assert end.code == 0",
    ],
    ids=["import sluice", "import sluice.client", "import sluice.testing.fakes", "sluice --help", "sluice up --help"],
)
def test_nothing_heavy_is_imported_by(code: str) -> None:
    check = f"{code}\nimport sys; found = [name for name in {HEAVY} if name in sys.modules]; assert not found, found"
    subprocess.run([sys.executable, "-c", check], cwd=ROOT, check=True, stdout=subprocess.DEVNULL, timeout=60)
