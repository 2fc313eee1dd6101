"""The training doctor: what is wrong with a run, each illness measured on its own and shown with its evidence."""
