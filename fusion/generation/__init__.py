"""Generation with a unified model: text tokens, images behind a cached prefix, and the `Fusion` interface."""
