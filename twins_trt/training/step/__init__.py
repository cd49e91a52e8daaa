"""One step of the optimizer: loss, learning rate, running mean of the weights, and the processes that share it."""
