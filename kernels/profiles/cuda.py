"""What our CUDA kernels run on an architecture: (op kind, precision) to kernel and recipe, for any NVIDIA device."""

from __future__ import annotations

import json
from functools import cache
from importlib import resources

from kernels import recipes
from kernels.cuda.capability import ARCHITECTURES, Via, capability
from kernels.device_identity import DeviceIdentity
from kernels.errors import KernelsError
from kernels.hardware_profile import HardwareProfile, KernelSupport
from kernels.recipe import Recipe

GROUP = 128
RUNTIME, RUNTIME_VERSION = "cuda", "1"
Pair = tuple[str, str]


def cuda_profile(slug: str, device: DeviceIdentity, arch: str) -> HardwareProfile:
    """A device of architecture `arch` (`sm_80`, `sm_90a`, …) with our kernels, not measurable here, without peaks.

    Raises `KernelsError` (`unknown_architecture`).
    """
    if arch not in ARCHITECTURES:
        raise KernelsError(
            f"no kernels are built for {arch!r}",
            hint=f"they are for {', '.join(ARCHITECTURES)}",
            code="unknown_architecture",
        )
    rows = _rows(arch)
    return HardwareProfile(
        slug=slug,
        device=device,
        runtime=RUNTIME,
        runtime_version=RUNTIME_VERSION,
        support={pair: support for pair, (support, _) in rows.items()},
        recipes={pair: recipe for pair, (_, recipe) in rows.items() if recipe is not None},
        session_options={},
    )


def _rows(arch: str) -> dict[Pair, tuple[KernelSupport, Recipe | None]]:
    gemm_s8 = "gemm_s8_wgmma" if arch == "sm_90a" else "gemm_s8"
    native = capability(arch, "w4a4") is Via.NATIVE
    gemm_w4a4, conv_w4a4 = ("gemm_s4_native", "conv_s4_native") if native else ("gemm_w4a4", "conv_w4a4")

    def ours(kernel: str, precision: str) -> KernelSupport:
        return KernelSupport(kernel, capability(arch, precision).value, verified=(kernel, arch) in _verified())

    fp8 = {("linear", "fp8"): (KernelSupport("torch._scaled_mm"), None)}
    return {
        ("conv2d", "fp32"): (KernelSupport("torch fp16", Via.VIA_FP16.value), None),
        ("conv2d", "fp16"): (KernelSupport("torch fp16"), None),
        ("conv2d", "w8a8"): (ours("conv_s8", "w8a8"), recipes.conv_symmetric_recipe(8, 8)),
        ("conv2d", "w4a8"): (ours("conv_w4a8", "w4a8"), recipes.conv_symmetric_recipe(4, 8)),
        ("conv2d", "w4a4"): (ours(conv_w4a4, "w4a4"), recipes.conv_symmetric_recipe(4, 4)),
        ("linear", "fp32"): (KernelSupport("torch fp16", Via.VIA_FP16.value), None),
        ("linear", "fp16"): (KernelSupport("torch fp16"), None),
        ("linear", "w8a8"): (ours(gemm_s8, "w8a8"), recipes.linear_symmetric_recipe(8, 8)),
        ("linear", "w4a8"): (ours("gemm_w4a8", "w4a8"), recipes.linear_symmetric_recipe(4, 8)),
        ("linear", "w4a4"): (ours(gemm_w4a4, "w4a4"), recipes.linear_symmetric_recipe(4, 4)),
        ("linear", f"w4a16-g{GROUP}"): (ours("gemm_w4a16", "w4a16"), recipes.linear_groups_float(GROUP)),
        **(fp8 if capability(arch, "fp8") is Via.NATIVE else {}),
    }


@cache
def _verified() -> frozenset[Pair]:
    """(kernel, architecture) pairs that ran on a device and equalled the reference."""
    text = resources.files(__package__).joinpath("verified.json").read_text(encoding="utf-8")
    return frozenset((entry["kernel"], entry["arch"]) for entry in json.loads(text))
