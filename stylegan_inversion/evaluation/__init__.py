"""Measures of what came out: one function a measure."""
