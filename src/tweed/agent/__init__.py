"""The loop that keeps a node right, and what it is asked through its unix socket."""
