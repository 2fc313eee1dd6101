"""Questions about images, answered by a unified model."""
