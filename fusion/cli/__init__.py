"""The command line interface `fusion`."""
