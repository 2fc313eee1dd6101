"""The tests: one file per module, the laws, parity with references, configs, and what needs a GPU."""
