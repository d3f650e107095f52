"""What a model's activations look like, learnt by running it in full precision once."""
