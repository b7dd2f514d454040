"""OpenAI's API: chat completions, completions, models; SGLang's and vLLM's extensions in both spellings."""
