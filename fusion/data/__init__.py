"""Data: the built-in world, and loaders for what people bring."""
