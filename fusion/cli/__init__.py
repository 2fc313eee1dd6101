"""The command line: `fusion`."""
