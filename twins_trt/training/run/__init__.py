"""A training from beginning to end: the job, the weights it starts from, the loop, and the folder that keeps it."""
