"""Modules that hand-offs hold as they are. They run where twins-trt is not installed, so they import nothing of it."""
