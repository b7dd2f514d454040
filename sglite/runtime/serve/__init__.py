"""The HTTP server: routes, programs over HTTP, and what starts them."""
