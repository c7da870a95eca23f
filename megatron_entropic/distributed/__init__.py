"""What the ranks of a run do together apart from computing: waiting for each other on the host."""
