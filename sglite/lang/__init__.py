"""The language: programs around a model, and what executes them. Knows nothing of the runtime."""
