"""Procedurally generated data sets whose results are scored by a judge of pixels."""
