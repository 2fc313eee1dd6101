"""Programs that train: run them from a clone, as `python -m train.<program> configs/<run>.yaml key=value`."""
