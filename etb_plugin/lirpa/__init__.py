"""All that knows auto_LiRPA: its bounds, the hook, and what its release 0.3 expects of older libraries."""
