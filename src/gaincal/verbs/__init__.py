"""One verb of gaincal each: embed, apply, inspect (info and validate)."""
