"""Models: configuration, checkpoints, layers and one short file per family."""
