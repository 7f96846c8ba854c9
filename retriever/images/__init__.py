"""Images as they lie in files, as pixels, and changed for training."""
