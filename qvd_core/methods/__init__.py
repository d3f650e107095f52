"""Published quantization methods, one file per published component."""
