"""What can answer a program: the engine in this process, or a server."""
