"""The entropy-control lab: every method, target and setting, on a CPU, resumable. `python -m recipes.lab --help`."""
