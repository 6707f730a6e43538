"""Speed and memory, ours against a peer's, side by side in one run."""
