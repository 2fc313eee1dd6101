"""Programs that train: `python -m train.<program> configs/<run>.yaml key=value`.

`fusion train` is the same when the package is installed.
"""
