"""Kernel source: one `.cu` file with its entry point, its tile configurations and what it must compile to.

The text of a kernel is one translation unit: `read_source` writes the headers of `src/` into it where they are
included, so that a cache key covers them and NVRTC needs no include path.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources

from kernels.errors import KernelsError

Defines = Mapping[str, int | str]

_INCLUDE = re.compile(r'^[ \t]*#[ \t]*include[ \t]+"([^"]+)"[^\n]*$', re.MULTILINE)


@dataclass(frozen=True)
class KernelSource:
    """One kernel as the package ships it.

    `tiles` maps a configuration's name to its macros (`-DBLOCK_M=128`); the first one is the default. `instructions`
    lists the matrix instructions the file chooses from, preferred first, named as in `kernels.cuda.capability`: on an
    architecture that rejects the first it falls back to the next. `rejected_by` names architectures on which the
    compilation must fail. Which of them ran on a card and were exact stands in `kernels/profiles/verified.json`.
    """

    name: str
    file: str
    entry: str
    tiles: Mapping[str, Defines]
    instructions: tuple[str, ...] = ()
    rejected_by: frozenset[str] = frozenset()

    @property
    def default_tile(self) -> str:
        return next(iter(self.tiles))

    def defines(self, tile: str | None = None) -> Defines:
        """The macros of a tile configuration (None: the default); `KernelsError` (`unknown_tile`) for another name."""
        try:
            return self.tiles[tile or self.default_tile]
        except KeyError:
            raise KernelsError(
                f"kernel {self.name!r} has no tile {tile!r}", hint=f"it has: {', '.join(self.tiles)}",
                code="unknown_tile",
            ) from None  # fmt: skip

    def text(self) -> str:
        return read_source(self.file)


def expand_headers(text: str, replaced: Mapping[str, str] | None = None, name: str = "text") -> str:
    """A translation unit that is not a file of the package, with its local headers written in as by `read_source`."""
    return _expand(name, text, dict(replaced or {}), set())


def read_source(file: str, replaced: Mapping[str, str] | None = None) -> str:
    """The text of `kernels/cuda/<file>` with every local header written in once, at its first inclusion.

    `replaced` maps a header's name to other text, by which tests run the same kernels on a CPU. `#line` directives
    keep compiler messages pointing at the original files.
    """
    return _expand(file, _read(file), dict(replaced or {}), set())


def _expand(name: str, text: str, replaced: Mapping[str, str], seen: set[str]) -> str:
    pieces = [f'#line 1 "{name}"\n']
    end = 0
    for match in _INCLUDE.finditer(text):
        pieces.append(text[end : match.start()])
        header = match[1]
        if header not in seen:
            seen.add(header)
            if header in replaced:
                pieces.append(replaced[header])
            else:
                pieces.append(_expand(header, _read(f"src/{header}"), replaced, seen))
        pieces.append(f'\n#line {text.count(chr(10), 0, match.end()) + 2} "{name}"')
        end = match.end()
    pieces.append(text[end:])
    return "".join(pieces)


def _read(file: str) -> str:
    path = resources.files("kernels.cuda").joinpath(file)
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise KernelsError(
            f"no CUDA source {file!r} in this installation", hint="reinstall the package", code="no_cuda_source"
        ) from error
