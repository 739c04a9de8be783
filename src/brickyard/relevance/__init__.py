"""Which channels matter to which class: relative contribution, and component locating from it."""
