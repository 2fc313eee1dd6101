"""Benchmarks, run as `python -m bench.NAME`, and their recorded results."""
