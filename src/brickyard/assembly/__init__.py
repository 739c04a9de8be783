"""Assemblies: classifiers composed of components, and the forms they can take."""
