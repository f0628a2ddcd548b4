"""Softmax attention as it is defined: Vaswani et al. 2017, with grouped heads, softcap, bias, masks and sinks."""
