"""Run-time checks of annotated arrays: the fields of a module and the method that runs share a scope of axis names."""
