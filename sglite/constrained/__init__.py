"""What may be generated. Knows token bytes and nothing else of the model: no import of the runtime."""
