"""Reports: one page about components, assemblies and relevances, that needs nothing but itself."""

from brickyard.reporting.page import report, write_report

__all__ = ["report", "write_report"]
