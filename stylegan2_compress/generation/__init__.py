"""Images and latent walks of generators, as files to look at."""
