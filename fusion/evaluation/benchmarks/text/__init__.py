"""Text benchmarks of a unified model and of the LLM that it was made from."""
