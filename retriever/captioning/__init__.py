"""Captions that models write of images, for reinforced training."""
