"""The part of the server that knows no hospital: HTTP, the database connection, images as files."""
