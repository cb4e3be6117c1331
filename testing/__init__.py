"""What the tests and the benches share: the Cloudinary double, large tables, counted statements."""
