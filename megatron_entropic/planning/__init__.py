"""Predictions for a run from its settings alone: memory by rank and stage, bytes sent, time of a step, layouts that fit.

Pure arithmetic: no torch, no GPU, no model files.
"""
