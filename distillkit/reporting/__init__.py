"""Reports of single runs and comparisons of several, built from run folders."""
