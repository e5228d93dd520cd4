"""`quickstart`: a small StyleGAN2 compressed on real digits."""
