"""A whole run on data, a model and a machine that everybody has: procedural scenes, a small model, a CPU."""
