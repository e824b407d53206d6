"""Uniform integer quantizers: codes, scales, clipping rules and the bytes they take."""
