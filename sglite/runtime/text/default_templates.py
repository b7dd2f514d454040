"""Chat templates of models that were published with code in their place."""

from __future__ import annotations

from sglite.runtime.text.folder import TokenizerFiles

QWEN_CHATML = (
    "{% if messages[0].role != 'system' %}<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""What the first Qwen's ``chat`` method writes; it takes no tools."""


def default_template(files: TokenizerFiles) -> str | None:
    """The template of a folder that brings none, where it is known: the first Qwen's, unless ``chat_format`` says that
    it was not trained to chat."""
    if not (files.folder / "qwen.tiktoken").is_file():
        return None
    return QWEN_CHATML if files.generation_config.get("chat_format", "chatml") == "chatml" else None
