"""Closed-form towers: weights that are computed from the training events, not trained.

A closed form is a way for a ``TwoTower`` to get its weights: ``Interactions → Factors`` (one module for each method),
and ``assign`` writes the factors into the model's tables. With ``trainer.max_epochs=0`` that *is* the model; with
epochs it is where training starts.
"""
