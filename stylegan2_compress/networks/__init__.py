"""Classes that end up in pickles, together with their source text: they import only the host, torch and NumPy."""
