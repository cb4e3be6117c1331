"""Tools that tests and benches share: the Cloudinary double, large tables, counted statements."""
