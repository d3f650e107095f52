"""How the embedded models were trained: see `python -m training --help` and the model cards."""
