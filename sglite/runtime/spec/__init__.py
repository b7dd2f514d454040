"""Speculation: proposers guess tokens, the target model verifies them in one row."""
