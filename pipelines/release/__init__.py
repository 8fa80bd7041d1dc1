"""From adapter to a published GGUF model, and back again."""
