"""Latency, layers, memory and energy of what runs a model, and the results file that says how they were measured."""
