"""How work runs: processes, progress, isolation of the caller's state, profiling."""
