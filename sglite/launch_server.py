"""``python -m sglite.launch_server --model-path MODEL``: ``sglite serve`` as SGLang's users start it."""

from __future__ import annotations

import sys

from sglite.cli import main

if __name__ == "__main__":
    sys.exit(main(["serve", *sys.argv[1:]]))
