"""What turns a schedule into a trace. Op bodies are given to a machine, never fetched by it."""
