"""The verbs: one module each, with its request, its defaults, its flags and the function that does it."""
