"""Charts of a report as SVG text: the front, bits per layer, predicted beside measured latency."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from kernels.precision import Precision

Document = Mapping[str, Any]

INK, FAINT, ACCENT, WARM, GREEN = "#1f2933", "#9aa5b1", "#2563eb", "#d97706", "#059669"
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "bitwright",  # equal reports give equal bytes
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": FAINT,
    "text.parse_math": False,  # layer names come from the submitted file
}
MARKERS = {"full_precision": ("s", INK), "uniform": ("^", WARM), "metric": ("o", ACCENT), "front": (".", ACCENT)}


def front_chart(target: Document, unit: str) -> str:
    """Loss against latency (bytes where none is known): the predicted front, every built assembly, the budget."""
    is_timed = target["front_resource"] == "latency_us"
    budgeted = "latency_ms" if is_timed else "size_bytes"

    def draw(axes: Axes) -> None:
        front = target["front"]
        if front:
            axes.step(
                [point["cost"] for point in front],
                [max(point["loss"], _floor(target)) for point in front],
                where="post",
                color=FAINT,
                linewidth=1,
                label="predicted front",
            )
        labelled: set[str] = set()
        for assembly in target["assemblies"]:
            if assembly["select"] is None:
                continue
            marker, color = MARKERS[assembly["source"]]
            loss = assembly["select"]["loss"]
            chosen = assembly["name"] == target["verdict"]["chosen"]
            label = "chosen" if chosen else assembly["source"].replace("_", " ")
            if not assembly["meets_budgets"]:
                label = "over a budget"
            center = max(loss["value"], _floor(target))
            axes.errorbar(
                [_latency_ms(assembly) if is_timed else assembly["size_bytes"]],
                [center],
                yerr=[[max(0.0, center - max(loss["ci_low"], _floor(target)))], [max(0.0, loss["ci_high"] - center)]],
                fmt="*" if chosen else marker,
                color=GREEN if chosen else color,
                markersize=14 if chosen else 6,
                markerfacecolor=None if assembly["meets_budgets"] else "white",
                capsize=2,
                linewidth=0.8,
                zorder=5 if chosen else 3,
                label=None if label in labelled else label,
            )
            labelled.add(label)
        for budget in target["budgets"]:
            if budget["resource"] == budgeted:
                axes.axvline(budget["limit"], color=WARM, linestyle="--", linewidth=1, label="budget")
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.set_xlabel("latency, ms (line predicted, marks measured)" if is_timed else "bytes on disk")
        axes.set_ylabel(f"loss, {unit}")
        axes.legend(frameon=False, fontsize=8)

    return _svg(draw, width=7.2, height=3.6)


def bits_chart(layers: Sequence[Document]) -> str:
    """Weight bits per layer in graph order; the darker the bar the more the layer's loss at its lowest precision."""
    worst = [max((choice["loss"] for choice in layer["choices"]), default=0.0) for layer in layers]
    top = max(worst, default=0.0) or 1.0

    def draw(axes: Axes) -> None:
        shades = [0.25 + 0.75 * (value / top) ** 0.5 for value in worst]
        axes.bar(
            range(len(layers)),
            [Precision(layer["precision"]).weight_bits for layer in layers],
            color=[(0.145, 0.388, 0.922, shade) for shade in shades],
            width=0.8,
        )
        axes.set_yticks([4, 8, 16, 32])
        axes.set_ylabel("weight bits")
        if len(layers) <= 80:
            axes.set_xticks(range(len(layers)), [layer["name"][-28:] for layer in layers], rotation=90, fontsize=6)
        else:
            axes.set_xlabel(f"{len(layers)} layers in graph order")

    return _svg(draw, width=max(7.2, min(14.0, 0.16 * len(layers))), height=3.2)


def latency_chart(assemblies: Sequence[Document]) -> str:
    """Predicted against measured end-to-end latency with the line of equality."""
    pairs = [
        (assembly["predicted"]["latency_ms"], assembly["measured"]["median_ms"], assembly["source"])
        for assembly in assemblies
        if assembly["measured"] is not None and "latency_ms" in assembly["predicted"]
    ]

    def draw(axes: Axes) -> None:
        for predicted, measured, source in pairs:
            marker, color = MARKERS[source]
            axes.plot(predicted, measured, marker, color=color, markersize=6)
        top = max([value for pair in pairs for value in pair[:2]], default=1.0) * 1.05
        axes.plot([0, top], [0, top], color=FAINT, linewidth=1)
        axes.set_xlabel("predicted, ms")
        axes.set_ylabel("measured, ms")

    return _svg(draw, width=3.6, height=3.2)


def _latency_ms(assembly: Document) -> float:
    measured = assembly["measured"]
    return float(measured["median_ms"] if measured else assembly["predicted"]["latency_ms"])


def _floor(target: Document) -> float:
    """Where a zero loss is drawn on the logarithmic axis: below the smallest positive one."""
    positive = [a["select"]["loss"]["value"] for a in target["assemblies"] if a["select"]]
    positive += [point["loss"] for point in target["front"]]
    return min((value for value in positive if value > 0), default=1e-6) / 3


def _svg(draw: Any, *, width: float, height: float) -> str:
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        draw(figure.subplots())
        out = io.StringIO()
        figure.savefig(out, format="svg", metadata={"Date": None})
    text = out.getvalue()
    return text[text.index("<svg") :]
