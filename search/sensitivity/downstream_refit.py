"""Downstream refit: what a perturbation does to the outputs once every later layer has been refitted to it.

An allocation is never used as scored: the sequential refit brings each quantized layer's output back to the
full-precision one, channel by channel, and takes out much of what the layers before it did. A scan without that
overrates errors that the refit removes (`benchmarks.sensitivity` prints both). So each perturbed forward here
applies, at every later layer, the least-squares factor and offset per output channel.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from search.assembly import Assembly
from search.graph import Graph, LayerKind
from search.simulation.layer_output import output_channel_axis
from search.simulation.simulator import Arrays, Simulator, count_samples
from search.simulation.torch_simulator import TorchSimulator, compile_hooks

# Two numbers per channel are fitted on the chunk itself; on fewer samples the fit would take out true error too.
FEWEST_SAMPLES = 32
_TINY = 1e-30


def can_refit(simulator: Simulator, chunks: Sequence[Arrays]) -> bool:
    """Whether chunks go through the simulator whole and are large enough to fit on."""
    smallest = min((count_samples(chunk) for chunk in chunks), default=0)
    return isinstance(simulator, TorchSimulator) and simulator.graph.fixed_batch is None and smallest >= FEWEST_SAMPLES


def with_whole_tail(chunks: Sequence[Arrays]) -> list[Arrays]:
    """The chunks with a last one that is too small to fit on joined to the one before it."""
    chunks = list(chunks)
    if len(chunks) > 1 and count_samples(chunks[-1]) < FEWEST_SAMPLES:
        before, tail = chunks[-2:]
        chunks[-2:] = [{name: np.concatenate([array, tail[name]]) for name, array in before.items()}]
    return chunks


def perturb_refitted(
    simulator: TorchSimulator, inputs: Arrays, assemblies: Sequence[Assembly]
) -> Iterator[dict[str, np.ndarray[Any, Any]]]:
    """`Simulator.perturb` with each assembly's later layers refitted on this chunk; its own layers stay as finished."""
    graph, program = simulator.graph, simulator.program
    compiled = [compile_hooks(graph, assembly, simulator.device) for assembly in assemblies]
    axes = refitted_outputs(graph)
    earliest = min((hooks.start for hooks in compiled), default=len(graph.nodes))
    later = {layer.output for layer in graph.layers if layer.node > earliest} & axes.keys()
    needed = later.union(*(program.live_after(hooks.start) for hooks in compiled))
    given = {name: torch.as_tensor(np.asarray(array), device=simulator.device) for name, array in inputs.items()}
    with torch.no_grad():
        exact = {**given, **program.run(given, keep=needed - given.keys())}
    for assembly, hooks in zip(assemblies, compiled, strict=True):
        refits = {
            layer.output: to_exact(exact[layer.output], axes[layer.output])
            for layer in graph.layers
            if layer.node > hooks.start and layer.name not in assembly.candidates and layer.output in axes
        }
        with torch.no_grad():
            found = program.run(
                given, reads=hooks.reads, writes={**refits, **hooks.writes}, start=hooks.start, env=exact
            )
        yield {info.name: found[info.name].cpu().numpy() for info in graph.outputs}


def refitted_outputs(graph: Graph) -> dict[str, int]:
    """Outputs (behind the bias) of the layers a refit reaches, with their channel axis."""
    return {
        layer.output: output_channel_axis(graph, layer)
        for layer in graph.layers
        if layer.unquantized_reason is None and layer.kind is not LayerKind.EMBEDDING
    }


def to_exact(exact: Tensor, channel_axis: int) -> Callable[[Tensor], Tensor]:
    """The map o → a_c·o + e_c that comes closest to `exact`, fitted to the tensor it is applied to.

    Written as o minus what the fit takes off, so that a vanishing error is not drowned in rounding. A channel that is
    constant, or would be turned around (a_c ≤ 0), is only shifted.
    """

    def refit(values: Tensor) -> Tensor:
        others = [axis for axis in range(values.ndim) if axis != channel_axis % values.ndim]
        error = values - exact
        shift = error.mean(others, keepdim=True)
        centred = values - values.mean(others, keepdim=True)
        spread = centred.square().mean(others, keepdim=True)
        slope = (centred * (error - shift)).mean(others, keepdim=True) / spread.clamp_min(_TINY)
        slope = torch.where((spread > _TINY) & (slope < 1.0), slope, torch.zeros_like(slope))
        return values - shift - slope * centred

    return refit
