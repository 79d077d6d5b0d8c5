"""Sparse neural-network training in JAX/Flax with CKA-SR."""
