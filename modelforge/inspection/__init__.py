"""`modelforge data inspect`: what a chemist wants to know of files before an experiment is written."""
