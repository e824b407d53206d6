"""Bound ops: one layer's real weights on the device, ready to be part of a network, by the kernel its row names."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from kernels.backends.cuda_contender import upload, work_of
from kernels.backends.cuda_device import CudaDevice, Work
from kernels.backends.cuda_kernels import OUTPUT_TYPES, BoundLaunch, epilogue_of, output_rows, pack
from kernels.backends.cuda_opponents import products
from kernels.backends.cuda_product import Multiply
from kernels.cuda.epilogue import Output
from kernels.cuda.launch import Reads, launches
from kernels.errors import NotMeasured
from kernels.op_shape import Conv2dShape, LinearShape
from kernels.random_layer import RandomLayer


@dataclass(frozen=True)
class BoundOp:
    """`run` takes activations in the form `reads` names, one row per sample or pixel, and gives (rows, channels).

    `leaves_codes`: int8 codes of the layer's output quantizer, whose rows have a pitch of a multiple of 4; else halves.
    With `adds_residual`, `run` takes halves of the output's shape beside the activations and adds them in the kernel.
    """

    kernel: str
    reads: Reads
    leaves_codes: bool
    run: Callable[[torch.Tensor, torch.Tensor | None], torch.Tensor]
    adds_residual: bool = False


def pitch_of(columns: int) -> int:
    """Bytes from pixel to pixel of int8 activations: what convolutions expect."""
    return -(-columns // 4) * 4


def bind(device: CudaDevice, layer: RandomLayer, preferred: Sequence[str], relu: bool = False) -> BoundOp:
    """The layer by the first kernel of `preferred` that can be bound: names as in a latency table's rows.

    With `relu` codes below zero become zero. Raises `NotMeasured` (`kernel_unknown`) when none of them can be.
    """
    output = Output.S8 if isinstance(layer.op, Conv2dShape) else Output.F16
    found = {
        each.name: each for each in launches(layer.op, layer.precision, device.arch, device.identity.cores, output)
    }
    for name in preferred:
        if name not in found:
            bound_product = _product(device, layer, name)
            if bound_product is None:
                continue
            return bound_product
        launch = found[name]
        packed = pack(launch, layer)
        rows, columns = output_rows(layer.op)
        leaves_codes = output is Output.S8
        ld_out = pitch_of(columns) if leaves_codes else columns
        bound = BoundLaunch(
            device,
            launch,
            upload(device, packed.data),
            epilogue_of(device, layer, output, relu, packed.channel_scale),
            ld_out,
            work_of(layer),
        )

        def run(
            x: torch.Tensor,
            residual: torch.Tensor | None,
            bound: BoundLaunch = bound,
            shape: tuple[int, int] = (rows, ld_out),
        ) -> torch.Tensor:
            out = torch.empty(shape, dtype=OUTPUT_TYPES[output], device=device.torch_device)
            bound.enqueue(x, out, residual=residual)
            return out

        return BoundOp(launch.name, launch.reads, leaves_codes, run, adds_residual=not leaves_codes)
    raise NotMeasured(
        f"none of {', '.join(preferred) or 'no kernels'} can be bound for {layer.op.signature} in {layer.precision}",
        hint=f"there are {', '.join(found) or 'none'}; measure the row again with this version",
        code="kernel_unknown",
    )


def _product(device: CudaDevice, layer: RandomLayer, name: str) -> BoundOp | None:
    """The library product that a row calls `name`, a contender's name and its variant; None where there is none."""
    for contender in products(device):
        variant = name.removeprefix(contender.name).strip()
        if not name.startswith(contender.name) or contender.why_not(layer.op, layer.precision) is not None:
            continue
        assert isinstance(layer.op, LinearShape)
        if variant not in contender.variants(layer.op, layer.precision):
            continue
        multiply, work = contender.product(layer, 1), work_of(layer)

        def run(
            x: torch.Tensor,
            residual: torch.Tensor | None,
            multiply: Multiply = multiply,
            variant: str = variant,
            work: Work = work,
        ) -> torch.Tensor:
            assert residual is None, "library products add none"
            made = device.run_torch(name, lambda: multiply(variant, 0, x), work)
            assert isinstance(made, torch.Tensor)
            return made

        return BoundOp(name, contender.reads(layer.precision), False, run)
    return None


def pack_nibbles(device: CudaDevice, codes: torch.Tensor, columns: int, groups: int, unit: int) -> torch.Tensor:
    """Codes (rows, pitch) in [-8, 7], of which `columns` count, as `kernels.cuda.packing` lays 4-bit words out.

    Every group starts on a word of its own and is padded to `unit` codes: 64 for products, 8 for convolutions.
    """

    def packed() -> torch.Tensor:
        rows = codes[:, :columns].reshape(codes.shape[0], groups, columns // groups)
        words = torch.nn.functional.pad(rows, (0, -rows.shape[2] % unit)).view(codes.shape[0], -1, 8)
        return ((words[..., :4] & 15) | (words[..., 4:] << 4)).view(codes.shape[0], -1)

    made = device.run_torch("pack_nibbles", packed, Work(moved_bytes=1.5 * codes.numel()))
    assert isinstance(made, torch.Tensor)
    return made
