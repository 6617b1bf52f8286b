"""The algebra of dimensions: atoms, products, sums, and their unification."""
