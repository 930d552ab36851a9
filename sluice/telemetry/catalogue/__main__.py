"""`python -m sluice.telemetry.catalogue > docs/metrics.md`."""

from sluice.telemetry.catalogue import render_markdown

print(render_markdown(), end="")
