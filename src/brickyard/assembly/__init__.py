"""Assemblies: one classifier made of components, and the forms that it can take."""
