"""Classes that end up inside pickles. They import the host, torch and numpy only: their source travels along."""
