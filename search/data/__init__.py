"""Samples: read, checked against a graph, split without leaks, cut into chunks, or made up when there are none."""
