"""The room that touches HDF5: chunks, words, fields, groups and output that is whole or absent."""
