"""What a model has and costs: parameters, densities and FLOPs of each layer."""
