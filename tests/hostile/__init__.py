"""Files that somebody made to harm, or that an accident made: an error of one line, a flag, never a wrong number."""
