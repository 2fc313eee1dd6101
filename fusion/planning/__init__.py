"""Forecasts of training runs: memory, time and cost, without a GPU and without weights."""
