"""Programs that measure and report: `python -m eval.<program>`; `fusion eval`, `fusion tune` and others are the same when installed."""
