"""Towers, similarity, negatives, logits, losses, optimisers and the Lightning wiring."""
