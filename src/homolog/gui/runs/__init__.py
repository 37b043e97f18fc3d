"""The tab Runs: the table of runs and the training screen."""
