"""What the commands do. They print nothing."""
