"""Anthropic's API: messages, whole and streamed, and how many tokens they have."""
