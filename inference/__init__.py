"""Predictions: predictors, results, files of them, ONNX."""
