"""The bench: the figures that Mosaic publishes, measured on this machine, beside its peers. `make bench`."""
