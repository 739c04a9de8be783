"""The commands; `brickyard.cli` puts them together. Nothing here is imported before a command runs, but typer."""
