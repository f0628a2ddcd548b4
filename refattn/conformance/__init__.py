"""The suite as pytest collects it: ``pytest --pyargs refattn.conformance --attn-kernel module:SPEC``."""
