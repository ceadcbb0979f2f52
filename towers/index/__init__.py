"""From item embeddings to a verified bundle, and from a bundle to answers."""
