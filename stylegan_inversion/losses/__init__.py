"""Losses: each file holds one named term, tensors in and a scalar out; weighting is the caller's."""
