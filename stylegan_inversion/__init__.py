"""Real photos inside StyleGAN2's latent space: pSp, e4e and PTI."""

__version__ = "0.1.0"
