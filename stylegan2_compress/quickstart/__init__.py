"""`quickstart`: compress a small StyleGAN2 trained on real digits."""
