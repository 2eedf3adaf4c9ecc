"""Published algorithms as their authors run them, written from the papers, to measure ours against."""
