"""Coordination of a run's ranks apart from computing: waiting for each other on the host."""
