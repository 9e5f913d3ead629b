"""What an answer says and how near it is to the right one: words, choices, yes and no, boxes. No model is needed to score."""
