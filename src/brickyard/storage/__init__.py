"""Files that are safe to read and are written whole or not at all."""
