"""Networks drawn from the idioms in which people write forward methods, and what a cut of each must return."""
