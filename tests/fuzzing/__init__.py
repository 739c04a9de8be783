"""Files that were changed at random, and what must come of them."""
