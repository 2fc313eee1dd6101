"""The trainer and what it needs: optimizers, checkpoints, sharding, validation, logs and the report of a run."""
