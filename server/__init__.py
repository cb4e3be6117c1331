"""The part of the server that knows nothing of a clinic: HTTP, the database, migrations, mail, pictures."""

import gc

# The objects that imports make stay for good. By its own thresholds, Python's collector looks through all of them again
# and again: the start takes an eighth more CPU. Cycles of a request are still collected, after 50,000 new objects.
gc.set_threshold(50_000, 20, 100)
