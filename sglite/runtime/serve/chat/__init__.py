"""Conversations, whatever the API they come by: from messages and tools to a constrained request, and back to turns."""
