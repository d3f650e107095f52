"""Numbers to codes and back: pure functions on tensors."""
