"""Domains: what the ends of a boundary can be in, which is the arithmetic that a layer's activations come and go in.

Full precision and every op that is no layer are in `float`, a layer that reads codes is in `int8`, and a layer whose
kernel takes floats but is of another kind than full precision's is in a domain of its own, named like the kernel class.
"""

from __future__ import annotations

FLOAT_DOMAIN, INT8_DOMAIN = "float", "int8"
