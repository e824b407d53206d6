"""The hardware profiles of this CPU, one per runtime: what it runs, with which numerics and session options."""

from __future__ import annotations

from importlib import metadata

from kernels import recipes
from kernels.cpu import saturates_in_int8, this_cpu
from kernels.device_identity import DeviceIdentity
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
    return HardwareProfile(
        slug="cpu-local",
        device=cpu,
        runtime="onnxruntime_cpu",
        runtime_version=metadata.version("onnxruntime"),
        support={pair: support for pair, (support, _) in rows.items()},
        recipes={pair: recipe for pair, (_, recipe) in rows.items() if recipe is not None},
        session_options=SESSION_OPTIONS,
        measurable_here=device is None or device == this_cpu(),
    )
