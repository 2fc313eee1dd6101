"""Evaluation of any model that generates images: suites, scores, pages, and public benchmarks."""
