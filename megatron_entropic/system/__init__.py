"""Functions of the machine and the installation, not of a run."""
