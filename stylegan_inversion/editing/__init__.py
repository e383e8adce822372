"""Moves in latent space: finding directions and going along them, without running a network."""
