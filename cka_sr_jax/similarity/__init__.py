"""Similarity of layers: CKA, CCA, and the CKA-SR penalty."""
