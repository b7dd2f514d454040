"""How models write what is not plain text: reasoning, and calls of tools."""
