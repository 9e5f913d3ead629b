"""What a model answers: decoding and comparing."""
