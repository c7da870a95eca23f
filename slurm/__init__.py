"""Runs on a SLURM cluster: sbatch files, the launcher they call, and what helps to submit and to read.

The launcher runs on the first node of a job, outside any container, where srun is: this package uses the standard library of
Python 3.9 and nothing else. Only `slurm.describe` belongs to the run's own environment; the launcher starts it as a step.
"""
