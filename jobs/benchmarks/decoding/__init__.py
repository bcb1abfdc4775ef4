"""How fast videos are indexed and decoded, beside FFmpeg, PyAV and torchcodec on the same files."""
