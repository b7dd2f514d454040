"""The JSON Schema front end: resolve references, merge what applies to one place, lower to a grammar."""
