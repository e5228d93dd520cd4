"""Generators as files that run without the host: in ONNX Runtime, OpenVINO, torch and browsers."""
