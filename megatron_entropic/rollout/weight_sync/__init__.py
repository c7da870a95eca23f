"""How a policy's weights reach running servers: buckets, transports, checksums."""
