"""Modules that are copied into hand-offs. They run without twins-trt, so they import nothing of it."""
