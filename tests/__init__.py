"""The tests: one file per module, the laws, parity with references, configs, and what needs a GPU."""

from beartype import BeartypeConf, beartype

# What checks fusion's signatures (see pytest's addopts): beartype, with an int welcome where a float is expected, as
# PEP 484 has it.
checked = beartype(conf=BeartypeConf(is_pep484_tower=True))
