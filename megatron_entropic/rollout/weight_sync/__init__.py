"""Transfer of a policy's weights to running servers: buckets, transports, checksums."""
