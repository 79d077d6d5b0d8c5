"""Layer sparsity: fit along a path of strengths, merge layers, refit, compare."""
