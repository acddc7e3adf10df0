"""Training: loop, loss, targets, optimizers, several processes."""
