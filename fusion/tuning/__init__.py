"""The search for sampling parameters with the best quality at every cost."""
