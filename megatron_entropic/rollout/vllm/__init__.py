"""The vLLM engine: servers, the fleet of them, and requests to them."""
