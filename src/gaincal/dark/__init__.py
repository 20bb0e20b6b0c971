"""DARK RUNS -> CONSTANTS: which words belong to which stage, what they give, and which pixels are bad."""
