"""Scores of a policy on a task: avg@k, pass@k, diversity."""
