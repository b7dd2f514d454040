"""From the JSON of a config to a ModelConfig, one short file a group of families."""
