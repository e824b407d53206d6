"""The hardware profiles of this CPU, one per runtime: what it runs, with which numerics and session options."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import metadata

from kernels import recipes
from kernels.cpu import has_bf16, saturates_in_int8, this_cpu
from kernels.device_identity import DeviceIdentity
from kernels.errors import BackendUnavailable
from kernels.hardware_profile import HardwareProfile, KernelSupport
from kernels.recipe import Recipe

Pair = tuple[str, str]


def onnxruntime_profile(device: DeviceIdentity | None = None) -> HardwareProfile:
    """`cpu-local`: a CPU (this one unless given) with ONNX Runtime."""
    from kernels.backends.onnxruntime_cpu import SESSION_OPTIONS

    cpu = device or this_cpu()
    reduced = saturates_in_int8(cpu)
    rows: dict[Pair, tuple[KernelSupport, Recipe | None]] = {
        ("conv2d", "fp32"): (KernelSupport("Conv"), None),
        ("conv2d", "w8a8"): (KernelSupport("QLinearConv"), recipes.conv_recipe(8, reduced_range=reduced)),
        ("conv2d", "w4a8"): (KernelSupport("QLinearConv", "via_int8"), recipes.conv_recipe(4)),
        ("linear", "fp32"): (KernelSupport("Gemm"), None),
        ("linear", "w8a8"): (KernelSupport("QGemm"), recipes.linear_recipe(8, reduced_range=reduced)),
        ("linear", "w8a8-dynamic"): (
            KernelSupport("DynamicQuantizeMatMul"),
            recipes.linear_dynamic_recipe(reduced_range=reduced),
        ),
        ("linear", "w4a8"): (KernelSupport("QGemm", "via_int8"), recipes.linear_recipe(4)),
        ("linear", "w4a16-g32"): (KernelSupport("MatMulNBits"), recipes.LINEAR_W4_GROUPS_INT8_INSIDE),
        ("embedding", "fp32"): (KernelSupport("Gather"), None),
        ("embedding", "w8a16"): (KernelSupport("Gather"), recipes.EMBEDDING_W8),
    }
    return _profile("cpu-local", cpu, "onnxruntime_cpu", "onnxruntime", rows, SESSION_OPTIONS)


def openvino_profile(device: DeviceIdentity | None = None) -> HardwareProfile:
    """`cpu-local-openvino`: a CPU (this one unless given) with OpenVINO."""
    from kernels.backends.openvino import SESSION_OPTIONS

    cpu = device or this_cpu()
    return _profile("cpu-local-openvino", cpu, "openvino", "openvino", _openvino_rows(cpu), SESSION_OPTIONS)


def openvino_bf16_profile(device: DeviceIdentity | None = None) -> HardwareProfile:
    """`cpu-local-openvino-bf16`: the same, with layers left in full precision computed in bfloat16.

    Raises `BackendUnavailable` for a CPU without bfloat16 units, where it would be slower than float.
    """
    from kernels.backends.openvino import BF16_SESSION_OPTIONS

    cpu = device or this_cpu()
    if not has_bf16(cpu):
        raise BackendUnavailable(
            f"{cpu.name} has no bfloat16 instructions ({', '.join(cpu.isa) or 'no vector units known'})",
            hint="use cpu-local-openvino",
        )
    rows = _openvino_rows(cpu)
    for kind in ("conv2d", "linear"):
        kernel = rows[kind, "fp32"][0].kernel.replace(":f32", ":bf16")
        rows[kind, "fp32"] = (KernelSupport(kernel, "via_bf16"), None)
    return _profile("cpu-local-openvino-bf16", cpu, "openvino", "openvino", rows, BF16_SESSION_OPTIONS)


def _openvino_rows(cpu: DeviceIdentity) -> dict[Pair, tuple[KernelSupport, Recipe | None]]:
    """Without VNNI the 4-bit kernel keeps its activations in float; with it, rows are quantized to int8 per group."""
    reduced = saturates_in_int8(cpu)
    groups = recipes.LINEAR_W4_GROUPS_FLOAT if reduced else recipes.LINEAR_W4_GROUPS_INT8_INSIDE
    return {
        ("conv2d", "fp32"): (KernelSupport("Convolution:f32"), None),
        ("conv2d", "w8a8"): (KernelSupport("Convolution:i8"), recipes.conv_recipe(8, reduced_range=reduced)),
        ("conv2d", "w4a8"): (KernelSupport("Convolution:i8", "via_int8"), recipes.conv_recipe(4)),
        ("linear", "fp32"): (KernelSupport("FullyConnected:f32"), None),
        ("linear", "w8a8"): (KernelSupport("FullyConnected:i8"), recipes.linear_recipe(8, reduced_range=reduced)),
        ("linear", "w4a8"): (KernelSupport("FullyConnected:i8", "via_int8"), recipes.linear_recipe(4)),
        ("linear", "w4a16-g32"): (KernelSupport("FullyConnected:i4-weights", whole_groups=True), groups),
        ("embedding", "fp32"): (KernelSupport("Gather:f32"), None),
        ("embedding", "w8a16"): (KernelSupport("Gather:i8"), recipes.EMBEDDING_W8),
    }


def _profile(
    slug: str,
    cpu: DeviceIdentity,
    runtime: str,
    distribution: str,
    rows: Mapping[Pair, tuple[KernelSupport, Recipe | None]],
    session_options: Mapping[str, str],
) -> HardwareProfile:
    return HardwareProfile(
        slug=slug,
        device=cpu,
        runtime=runtime,
        runtime_version=metadata.version(distribution),
        support={pair: support for pair, (support, _) in rows.items()},
        recipes={pair: recipe for pair, (_, recipe) in rows.items() if recipe is not None},
        session_options=dict(session_options),
        measurable_here=cpu == this_cpu(),
    )
