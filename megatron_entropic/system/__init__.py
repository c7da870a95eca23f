"""What belongs to the machine and the installation, not to a run."""
