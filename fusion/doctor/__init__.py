"""The training doctor: what is wrong with a run, each fault ("illness") measured on its own and shown with evidence."""
