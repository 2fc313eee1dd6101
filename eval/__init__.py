"""Programs that measure and report: run them from a clone, as `python -m eval.<program>`."""
