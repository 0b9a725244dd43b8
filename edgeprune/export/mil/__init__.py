"""Core ML's programs (MIL), run by PyTorch where Apple's runtime is not: an operator that is not known is refused."""
