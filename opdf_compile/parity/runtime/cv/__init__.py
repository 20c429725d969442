"""OpenCV's dnn module, with either of its two engines."""
