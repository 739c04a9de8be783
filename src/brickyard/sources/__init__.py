"""Sources: trained classifiers by name, and a zoo of small networks."""

from brickyard.sources.loading import Source, load_source, save_source

__all__ = ["Source", "load_source", "save_source"]
