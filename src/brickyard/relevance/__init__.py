"""Which channels matter for each class: relative contribution, and component locating based on it."""
