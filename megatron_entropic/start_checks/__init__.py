"""Checks of a run before anything is started: its model, its layout, its data, its learning settings."""
