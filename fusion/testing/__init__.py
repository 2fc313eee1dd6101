"""Tiny models, documents and reference networks for tests and benchmarks."""
