"""How much ONNX the importer covers: backend node tests per op, and real topologies against ONNX Runtime.

Opponent: the op types that onnx2torch registers converters for, from `data/onnx2torch_ops.json`. A test or model counts
for it as soon as every op is on that list, at any opset and without running it, which favours it.

The light models carry constants for weights, so their outputs say little; seeded random weights are put in first.
"""

from __future__ import annotations

import json
import math
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import helper, numpy_helper

from benchmarks.backend_node_cases import failure, listed_cases, node_cases
from benchmarks.bars import Bar, at_least, finish, print_table
from search.errors import SearchError
from search.onnx_import import Program, graph_from_model

TOLERANCE = 1e-5
_OPPONENT = Path(__file__).parent / "data" / "onnx2torch_ops.json"


def main() -> int:
    covered = json.loads(_OPPONENT.read_text())
    opponent = frozenset(covered["ops"])
    listed = listed_cases()
    rows: dict[str, list[int]] = defaultdict(lambda: [0, 0, 0])
    failed = []
    for case in listed:
        why = failure(case)
        row = rows[case.op]
        row[0] += why is None
        row[1] += 1
        row[2] += _opponent_covers(case.model, opponent)
        if why is not None:
            failed.append((case.name, why))
    print_table(["op", "passed", "listed", "onnx2torch lists"], [(op, *row) for op, row in sorted(rows.items())])
    for name, why in failed:
        print(f"failed {name}: {why}")
    names = {case.name for case in listed}
    outside = [case for case in node_cases() if case.name not in names]
    reasons: dict[str, int] = defaultdict(int)
    for case in outside:
        reasons[case.excluded or "ops outside the table"] += 1
    print()
    print_table(["not listed because", "cases"], sorted(reasons.items(), key=lambda item: -item[1]))
    print()
    models = [_light_model(path, opponent) for path in light_models()]
    print_table(["light model", "imports and equals ONNX Runtime", "largest difference", "onnx2torch lists"], models)
    passed, ran = sum(row[0] for row in rows.values()), sum(row[1] for row in rows.values())
    theirs = sum(row[2] for row in rows.values())
    equal, theirs_models = sum(row[1] == "yes" for row in models), sum(row[3] == "yes" for row in models)
    bars: list[Bar] = [
        at_least("node tests passed of those listed", passed / ran, "share", 1.0),
        at_least("light models equal to ONNX Runtime", equal / len(models), "share", 1.0),
        at_least("node tests passed over what onnx2torch lists", passed / max(1, theirs), "x", 1.0),
        at_least("light models equal over what onnx2torch lists", equal / max(1, theirs_models), "x", 1.0),
    ]
    return finish(
        "import_coverage",
        bars,
        node_tests={"passed": passed, "listed": ran, "onnx2torch": theirs, "all": len(node_cases())},
        light_models={"equal": equal, "all": len(models), "onnx2torch": theirs_models},
        opponent={key: covered[key] for key in ("version", "commit")},
    )


def light_models() -> list[Path]:
    """The real topologies with synthetic weights that ship in the onnx package."""
    return sorted((Path(onnx.__file__).parent / "backend" / "test" / "data" / "light").glob("*.onnx"))


def _opponent_covers(model: onnx.ModelProto, opponent: frozenset[str]) -> bool:
    return all(node.op_type in opponent for node in model.graph.node)


def _light_model(path: Path, opponent: frozenset[str]) -> tuple[str, str, float | str, str]:
    model = onnx.load(str(path))
    theirs = "yes" if _opponent_covers(model, opponent) else "no"
    try:
        difference = difference_to_runtime(with_random_weights(model))
    except SearchError as error:
        return path.stem, f"no: {error.message[:80]}", "–", theirs
    return path.stem, "yes" if difference <= TOLERANCE else "no: differs", difference, theirs


def with_random_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with every ConstantOfShape replaced by a seeded initializer: He-scaled weights, vectors near 1."""
    random = np.random.default_rng(0)
    shapes = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    del changed.graph.node[:]
    for node in model.graph.node:
        if node.op_type != "ConstantOfShape" or node.input[0] not in shapes:
            changed.graph.node.append(node)
            continue
        shape = [int(size) for size in shapes[node.input[0]]]
        if len(shape) > 1:
            value = random.normal(size=shape) * np.sqrt(2 / max(1, math.prod(shape[1:])))
        else:
            value = random.uniform(0.5, 1.5, size=shape)
        changed.graph.initializer.append(numpy_helper.from_array(value.astype(np.float32), node.output[0]))
    if model.graph.node[-1].op_type == "Softmax":
        # Random logits are far apart and saturate the softmax, which would hide differences: compare what it reads.
        del changed.graph.node[-1], changed.graph.output[:]
        name = model.graph.node[-1].input[0]
        changed.graph.output.append(helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    return changed


def difference_to_runtime(model: onnx.ModelProto) -> float:
    """The largest difference of any output over its scale, on one seeded random input."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    random = np.random.default_rng(0)
    graph = graph_from_model(model)
    feed = {}
    for info in graph.inputs:
        shape = [size if isinstance(size, int) else 1 for size in info.shape]
        feed[info.name] = random.normal(size=shape).astype(info.dtype)
    with torch.no_grad():
        ours = Program(graph).run({name: torch.from_numpy(value) for name, value in feed.items()})
    worst = 0.0
    names = [info.name for info in session.get_outputs()]
    for name, theirs in zip(names, session.run(names, feed), strict=True):
        scale = max(float(np.abs(theirs).max()), 1e-30)
        worst = max(worst, float(np.abs(ours[name].numpy() - theirs).max()) / scale)
    return worst


if __name__ == "__main__":
    sys.exit(main())
