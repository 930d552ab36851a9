"""Takes docs/ui-overview.png and docs/ui-group.png of a run directory, in Debian's Chromium.

usage: python scripts/ui_pictures.py RUN [GROUP]; without GROUP the newest trained group whose samples differ and whose batch is
kept. The pages are served by a `sluice ui` of its own.
"""

import subprocess
import sys
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, sync_playwright

from sluice.run_dir.batch_file import batch_path
from sluice.ui.group_filter import GroupFilter
from sluice.ui.ledger import Ledger
from tests.needs import chromium

DOCS = Path(__file__).parents[1] / "docs"
SIZE = {"width": 1280, "height": 1100}
SETTLED_MS = 3_000
"""Charts are drawn by then."""
MOST_BYTES = 200_000
COLOURS = 128


def main(run_dir: Path, group: str = "") -> None:
    """Raises AssertionError for a picture that is larger than a README should load."""
    group = group or newest_kept(run_dir)
    command = [sys.executable, "-m", "sluice.cli.main", "ui", str(run_dir), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server, sync_playwright() as playwright:
        try:
            assert server.stdout is not None
            address = server.stdout.readline().strip()
            browser = playwright.chromium.launch(executable_path=chromium(), args=["--no-sandbox", "--disable-gpu"])
            page = browser.new_page(viewport=SIZE, color_scheme="light")
            take(page, f"{address}overview", DOCS / "ui-overview.png")
            take(page, f"{address}group/{group}", DOCS / "ui-group.png")
            browser.close()
        finally:
            server.terminate()


def newest_kept(run_dir: Path) -> str:
    """Of the trained groups whose tokens the run still has."""
    trained = Ledger(run_dir).page(GroupFilter(term="trained", sort="step")).rows
    return next(row["group_id"] for row in trained if batch_path(run_dir, row["step"]).exists())


def take(page: Page, address: str, path: Path) -> None:
    """One picture, as small as the page's few colours permit."""
    page.goto(address, timeout=120_000)
    page.wait_for_timeout(SETTLED_MS)
    page.screenshot(path=path, timeout=120_000)
    Image.open(path).convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE).save(path, optimize=True)
    size = path.stat().st_size
    assert size <= MOST_BYTES, f"{path}: must have at most {MOST_BYTES} bytes, has {size}"


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:3])
