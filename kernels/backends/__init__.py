"""Backends: the runtimes that run and time single ops and whole models; each says what it can run and why not."""
