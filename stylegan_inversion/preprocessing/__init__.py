"""Pixels: reading photos, finding landmarks, cropping faces and putting them back."""
