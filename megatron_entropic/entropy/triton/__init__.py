"""The Triton kernels of the token statistics."""
