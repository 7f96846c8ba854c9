"""Teachers' scores: made, kept for ever, looked after, compared, and exchanged with other programs."""
