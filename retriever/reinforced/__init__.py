"""Reinforced datasets: augmented images with captions and teachers' vectors, made once and trained on often."""
