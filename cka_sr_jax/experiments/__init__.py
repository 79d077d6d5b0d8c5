"""Experiments that are more than one training run."""
