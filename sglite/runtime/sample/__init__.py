"""From logits to tokens: sampling parameters (no torch), penalties, the draw, log probabilities."""
