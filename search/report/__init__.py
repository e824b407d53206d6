"""The evidence: one JSON document per study and the same as one self-contained HTML page."""
