"""Published chat models, answering: retrieval, prompt, llama.cpp."""
