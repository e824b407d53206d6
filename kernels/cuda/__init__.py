"""CUDA kernels: `.cu` files as package data, compiled for the exact architecture where they run.

`source` names the kernels and reads their text, `compile` turns one into a cubin through NVRTC (no toolkit, no driver,
no GPU needed for that), `disassembly` reads back which machine instructions came out, and `capability` is the table of
what every architecture does natively. Importing any of them loads neither numpy, torch nor a CUDA library.
"""
