"""The process that a person starts: one experiment from its config to its outcome. No tensors."""
