"""How facilities lay out raw words and constants."""
