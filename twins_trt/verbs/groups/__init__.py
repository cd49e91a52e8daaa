"""Groups of flags that several verbs share: one module a group, with its flags and what its fields mean."""
