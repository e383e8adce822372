"""Foreign checkpoints to ours and back: pure functions from state dict to (config, state dict)."""
