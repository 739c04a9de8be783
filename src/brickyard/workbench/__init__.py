"""A local web page to build classifiers from the components of a yard."""

from brickyard.workbench.app import create_app

__all__ = ["create_app"]
