"""Engines that turn a grammar into token masks. Each is imported when it is first used."""
