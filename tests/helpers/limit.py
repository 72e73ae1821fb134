"""How long a test waits for an event; not a test itself."""

LIMIT = 600  # s, after which what should have ended hangs
