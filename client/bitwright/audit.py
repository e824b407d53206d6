"""Audit: what of a finished study really runs quantized, and why the rest does not, from its report."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from bitwright.gate import chosen_of

FULL = frozenset({"fp32", "fp16", "bf16"})


def audit_target(target: Mapping[str, Any]) -> dict[str, Any]:
    """One target: layers and weights per precision, nodes left in float and assemblies discarded, with reasons.

    The server reads back which ops the runtime executed before it accepts an assembly, in both directions; one that did
    not run as it was exported is listed under `discarded`.
    """
    layers: Counter[str] = Counter()
    weights: Counter[str] = Counter()
    for layer in target["layers"]:
        layers[layer["precision"]] += 1
        weights[layer["precision"]] += layer["weights"]
    total = sum(weights.values())
    chosen = chosen_of(target)
    return {
        "hardware": target["hardware"],
        "runtime": f"{target['runtime']} {target.get('runtime_version', '')}".strip(),
        "session_options": dict(target.get("session_options", {})),
        "chosen": None if chosen is None else chosen["name"],
        "precisions": {
            name: {"layers": count, "weight_share": weights[name] / total if total else 0.0}
            for name, count in layers.most_common()
        },
        "quantized_weight_share": sum(count for name, count in weights.items() if name not in FULL) / total
        if total
        else 0.0,
        "in_float": [
            {"name": layer["name"], "kind": layer["kind"], "reason": layer["reason"]}
            for layer in target["layers"]
            if layer["precision"] in FULL
        ]
        + [
            {"name": one["node"], "kind": one["op_type"], "reason": one["reason"]}
            for one in target.get("unquantized", [])
            if one["node"] not in {layer["name"] for layer in target["layers"]}
        ],
        "discarded": [
            {"name": one["name"], "reason": one["discarded"]} for one in target["assemblies"] if one.get("discarded")
        ],
    }
