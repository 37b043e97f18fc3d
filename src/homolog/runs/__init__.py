"""Jobs in their own processes: run directory, worker, launch."""
