"""The part of the server that knows nothing of a clinic: HTTP, the database, migrations, mail, pictures."""
