"""Evaluation of anything that draws: suites, scores, pages, and the field's benchmarks."""
