"""Engines that sample from a policy: vLLM and transformers behind one protocol."""
