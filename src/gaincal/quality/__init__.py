"""How good a run and its constants are: numbers, no pictures."""
