"""One self-contained HTML page of a report: no script, no request, every name escaped."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from search.report.charts import bits_chart, front_chart, latency_chart


def render_html(report: Mapping[str, Any]) -> str:
    """The page of a report document (`search.report.document`)."""
    environment = Environment(
        loader=PackageLoader("search.report", "."), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.filters.update(mb=_megabytes, sig=_significant, ms=_milliseconds)
    charts = [
        {
            "front": Markup(front_chart(target, report["loss"]["unit"])),
            "bits": Markup(bits_chart(target["layers"])),
            "latency": Markup(latency_chart(target["assemblies"])),
        }
        for target in report["targets"]
    ]
    return environment.get_template("report.html").render(report=report, charts=charts)


def _megabytes(size_bytes: float) -> str:
    return f"{size_bytes / 1e6:.3g} MB"


def _significant(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}"


def _milliseconds(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f} ms"
