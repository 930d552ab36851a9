"""`python -m sluice.telemetry.catalogue > docs/metrics.md`."""

from sluice.telemetry.catalogue.metrics_page import render_markdown

if __name__ == "__main__":
    print(render_markdown(), end="")
