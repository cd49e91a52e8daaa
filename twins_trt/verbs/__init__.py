"""What can be asked for: one module a verb, with its request, its defaults, its flags and the function that does it."""
