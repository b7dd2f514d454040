"""Text at the edge of the runtime: tokenizers, incremental text, stop matching, chat templates."""
