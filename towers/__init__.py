"""Towers: deep two-tower retrieval for job search and recommendation.

Nothing heavy is imported here; take what you need from the rooms:
``towers.features``, ``towers.model``, ``towers.evaluation``, ``towers.index``.
"""

__version__ = "0.1.0"
