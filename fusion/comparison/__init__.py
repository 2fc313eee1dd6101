"""Comparison of architectures of matched size on the same data."""
