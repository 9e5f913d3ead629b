"""Grouped reinforcement learning: what a reply is worth, by how much it beats its group, and the loss that says so to the policy."""
