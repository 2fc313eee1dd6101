"""Programs that measure and report: run them from a clone, as `python -m eval.<program>`."""

import train  # noqa: F401  (bounds what oneDNN keeps, before torch is loaded)
