"""Load training data: the built-in synthetic world, and loaders for users' own data sets."""
