"""LoRA adapters, trained in a process of their own."""
