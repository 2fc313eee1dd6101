"""Programs that evaluate and report: `python -m eval.<program>`.

`fusion eval`, `fusion tune` and others are the same programs when the package is installed.
"""
