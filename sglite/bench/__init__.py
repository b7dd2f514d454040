"""Load on a running server, and what came of it: ``sglite bench``. Knows servers by HTTP only."""
