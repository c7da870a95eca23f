"""Checkpoints as files: folders that are whole or not there, their manifests, and which kind one is."""
