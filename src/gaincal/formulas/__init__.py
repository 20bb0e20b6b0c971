"""From text or columns to checked steps; knows neither HDF5 nor numba."""
