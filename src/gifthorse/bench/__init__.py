"""Making test models and judging defenses on them."""
