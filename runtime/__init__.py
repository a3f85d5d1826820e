"""The device side: open an artifact, plan, train inside a budget, evaluate, checkpoint, finalize.

Needs numpy and an ordinary onnxruntime, which is imported when an engine is made. Never torch or onnx.
"""
