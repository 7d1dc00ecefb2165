"""From a model to a folder that embeds without torch: ONNX graphs, verified, beside what a runtime needs to know."""
