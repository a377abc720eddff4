"""The command line: parses, calls the engine, prints; no logic of its own."""
