"""The commands: each module parses, calls and prints; `main` imports it when it is invoked."""
