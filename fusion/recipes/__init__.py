"""Whole runs: the configuration of each kind of training, and the function that carries it out."""
