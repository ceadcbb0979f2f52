"""Classical methods to be beaten: fitted in seconds, scored by products of wide sparse matrices.

One module for each method; ``baseline`` says what they have in common, ``fitted`` keeps and scores what they fit.
"""
