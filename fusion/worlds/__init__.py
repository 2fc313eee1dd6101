"""Procedural data sets with a judge of their own."""
