"""Training tooling of the bundled model `sglite-demo`; see README.md."""
