"""Files to types and back; the room that opens files and trusts nothing in them."""
