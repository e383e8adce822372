"""Learning networks: data, objectives, optimisers and the loop around them."""
