"""Stands for the kernels package when a worker asks for its hardware: `python -m … profile --json --hardware SLUG`."""

import json
import sys

slug = sys.argv[sys.argv.index("--hardware") + 1]
if not slug.startswith("tiny"):
    sys.exit(f"no such hardware: {slug}")
print(json.dumps({"slug": slug, "runtime": "tiny", "device": {"kind": "cpu", "name": "tiny"}}))
