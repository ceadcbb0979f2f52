"""What the verbs share: composing a run from its config, run folders, and how errors reach the terminal."""
