"""Rows of made-up runs for paired comparisons."""


def rows_of(table, density=0.05):
    """{beta: [(validation, test) of seed 0, 1, ...]} as rows."""
    return [
        {
            "seed": seed,
            "penalty.beta": beta,
            "sparsity.density": density,
            "validation.accuracy": validation,
            "test.accuracy": test,
            "test.loss": 1.0,
        }
        for beta, results in table.items()
        for seed, (validation, test) in enumerate(results)
    ]


TABLE = {
    0.0: [(0.5, 0.80), (0.5, 0.82), (0.5, 0.84)],
    1e-4: [(0.6, 0.81), (0.6, 0.82), (0.6, 0.83)],  # best on validation data
    1e-3: [(0.5, 0.99), (0.5, 0.99), (0.5, 0.99)],  # best on test data: must not be chosen
}
