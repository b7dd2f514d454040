"""OpenAI's Responses API: create, stream, keep, get, delete and cancel, over the same chat layer as the other APIs."""
