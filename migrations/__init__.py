"""Schema changes, applied in order by `mosaic migrate` (app/schema.py). Each file has `up(run)`."""
