"""Reads a Prometheus endpoint as Prometheus does."""

import asyncio
import urllib.request

from prometheus_client.parser import text_string_to_metric_families

from tests.promql import metrics_in, panel_queries, rules


async def page(address: str, path: str = "/metrics") -> str:
    """The text of a page of the endpoint at host:port."""

    def read() -> str:
        with urllib.request.urlopen(f"http://{address}{path}", timeout=10) as response:
            return response.read().decode()

    return await asyncio.to_thread(read)


async def scrape(address: str) -> dict[str, dict[str, str]]:
    """The labels of every series at host:port, by its name."""
    families = text_string_to_metric_families(await page(address))
    return {sample.name: dict(sample.labels) for family in families for sample in family.samples}


def asked_of(source: str) -> set[str]:
    """Prometheus's names of what rules and dashboard take from a kind of service."""
    queries = [*panel_queries(), *(rule["expr"] for rule in rules())]
    metrics = set().union(*map(metrics_in, queries))
    return {
        metric.prometheus_name
        for metric in metrics
        if metric.source in (source, "every service") and not metric.name.endswith("*")
    }
