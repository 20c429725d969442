"""ncnn: files converted by pnnx, nets on the processor, and the layers that run."""
