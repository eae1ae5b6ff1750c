"""Run the network: with torch on CUDA or the CPU, or with OpenVINO.

In: crops, uint8 or float32 of shape (n, 224, 224, 3). Out: features, float32
of shape (n, 2048). Order: `contract`, `exact`, `check`, `fused`, `cuda`, then
`torch`, `openvino` and `int8`; `multiplication` measures what a processor can
do. Never decodes an image or reads a weights file.
"""
