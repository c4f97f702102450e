"""The commands. Each is one short file; whatever is heavy is imported inside the command."""
