"""Logs → prepared dataset → batches. Used from the checkout, never installed."""
